"""Whether a checkpoint is one of the training that goes on with it."""

from __future__ import annotations

import json

from commbench.errors import UsageError
from commbench.train.config import TrainConfig
from moe_ref.training.checkpoint import Checkpoint


def check_same(config: TrainConfig, found: Checkpoint) -> None:
    """Raise `UsageError` where a checkpoint was made by settings that compute something else."""
    theirs = TrainConfig.of(json.loads(found.about["config"]))
    changed = config.changed(theirs)
    if "text" not in found.about and config.path != theirs.path:  # of a version that did not know its text
        changed["path"] = config.path, theirs.path
    if changed:
        differences = ", ".join(f"{key}={there}, not {here}" for key, (here, there) in changed.items())
        raise UsageError(f"{found.folder} is a checkpoint of another training: {differences}",
                         hint="leave these keys as they were; or start a new run")  # fmt: skip
