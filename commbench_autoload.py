"""torch loads this at `import torch`, as its entry points say. Nothing happens unless COMMBENCH_BACKEND is set.

It stands beside the package, so that a program that wants nothing of commbench loads this file alone.
"""

import os
import sys


def activate() -> None:
    """Start what COMMBENCH_BACKEND asks for. Never raises: torch would fail to import, in every program."""
    if not os.environ.get("COMMBENCH_BACKEND"):
        return
    try:
        from commbench.backend.start import start

        start()
    except Exception as error:
        sys.stderr.write(f"commbench: the program runs without it: {type(error).__name__}: {error}\n")
