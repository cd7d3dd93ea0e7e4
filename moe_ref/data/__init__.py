"""Text as bytes: a public-domain sample that comes with the package, or a file of one's own."""

from moe_ref.data.text import Text, sample

__all__ = ["Text", "sample"]
