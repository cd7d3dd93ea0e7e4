"""A decoder-only language model whose every n-th block has the Mixture-of-Experts layer in place of its FFN.

Shape suffixes beside those of `moe_ref`: B sequences of one pass, S positions, V vocabulary, N attention heads.
"""

from moe_ref.lm.config import LMConfig
from moe_ref.lm.model import LM, LMOutput

__all__ = ["LM", "LMConfig", "LMOutput"]
