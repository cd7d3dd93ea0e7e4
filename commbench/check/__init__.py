"""check: is it healthy? One verdict from what doctor, pairs, stragglers, the bound and an A-A control say."""

from __future__ import annotations

from enum import StrEnum


class HealthVerdict(StrEnum):
    """What a check ends with, and what its exit code says."""

    HEALTHY = "healthy"
    NOT_HEALTHY = "not_healthy"
    CANNOT_TELL = "cannot_tell"

    @property
    def exit_code(self) -> int:
        return {HealthVerdict.HEALTHY: 0, HealthVerdict.NOT_HEALTHY: 1, HealthVerdict.CANNOT_TELL: 3}[self]
