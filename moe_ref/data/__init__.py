"""Text as bytes: a public-domain sample that comes with the package, or a file of one's own."""

from moe_ref.data.text import TextDataset, sample

__all__ = ["TextDataset", "sample"]
