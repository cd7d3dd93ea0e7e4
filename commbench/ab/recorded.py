"""The steps of one launch, as the recorder in its ranks has seen them."""

from __future__ import annotations

import shutil
from pathlib import Path

from commbench.ab.turns import ArmFailed
from commbench.errors import CommbenchError
from commbench.record import folder


class Recorded:
    """A recording beside a launch's log, of which the steps alone are kept."""

    def __init__(self, log: Path) -> None:
        self.path = log.with_suffix(".trace").absolute()
        shutil.rmtree(self.path, ignore_errors=True)  # of a launch that was killed
        self._recording = folder.begin(self.path)

    def close(self) -> tuple[list[float], int]:
        """Return the seconds of each step, those of its slowest rank, and how many ranks were seen.

        Raises `ArmFailed` where a rank's file is damaged.
        """
        try:
            records = self._recording.records()
        except CommbenchError as error:
            raise ArmFailed(str(error)) from error
        finally:
            self.drop()
        slowest: dict[float, float] = {}
        for record in records:
            for number, duration_us in record.steps:
                slowest[number] = max(slowest.get(number, 0.0), duration_us / 1e6)
        return [slowest[number] for number in sorted(slowest)], len(records)

    def drop(self) -> None:
        """Remove it."""
        self._recording.lock.release()
        shutil.rmtree(self.path, ignore_errors=True)
