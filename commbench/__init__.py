"""commbench: measure AllToAll honestly, find what is provably better, and hand it to other programs."""

__version__ = "0.1.0"
