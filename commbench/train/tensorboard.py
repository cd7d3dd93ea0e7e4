"""Numbers by step for TensorBoard, written by the parent: the package `tensorboard` alone, without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from commbench.errors import EnvironmentProblem

FOLDER = "tensorboard"  # in the run folder
_FILES = "events.out.tfevents.*"


def check() -> None:
    """Raises `EnvironmentProblem` where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentProblem("tensorboard=true, and tensorboard is not installed",
                                 hint="pip install 'commbench[tb]', or leave the key out")  # fmt: skip


class Scalars:
    """One scalar of each number of each line; what is null, or yes or no, has none."""

    def __init__(self, folder: Path, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """folder: what was written there before is dropped, and `lines` take its place: those that a run that goes on
        has kept. Their wall times are of now.
        """
        from tensorboard.summary import Writer

        folder.mkdir(exist_ok=True)
        for file in folder.glob(_FILES):
            file.unlink()
        self._writer = Writer(str(folder))
        self.add(lines)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Each has `step`. They are on disk when this returns."""
        for line in lines:
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(key, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
