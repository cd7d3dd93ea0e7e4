"""The parent side of `commbench train`."""
