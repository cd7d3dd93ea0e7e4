"""Errors for names that no list here has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from commbench.errors import UsageError, unknown


def unknown_name(kind: str, value: str, known: Sequence[str], command: str) -> UsageError:
    """Return the error: it names the nearest names, or the command that lists all of them, as they are many."""
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    return unknown(kind, value, known, hint="" if near else f"{command} lists all of them")
