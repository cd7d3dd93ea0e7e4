"""Shares with their intervals."""

from __future__ import annotations

import math


def wilson(count: int, of: int) -> str:
    """Return the 95 % interval of a share, in per cent: Wilson's, which holds for few and for none as well."""
    z, share = 1.96, count / of
    centre, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = (100 * (centre + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return f"{max(low, 0):.1f} - {high:.1f} %"
