"""What keeping activations on the host costs, beside computing them again: python -m tests.bench offload [--out FILE].

One model trains on one device with everything kept, with `recompute=redo`, and with `offload=activations`. On a GPU the
process may then have a 1.3rd of the memory that it took with everything kept (torch's per-process limit), so that the
model is 1.3 times too large: the first of the three has to fail there, the others have to train. Losses are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from commbench.train import config as train_config
from commbench.train.config import TrainConfig
from moe_ref.training.trainer import Trainer

WAYS: dict[str, dict[str, Any]] = {
    "kept": {}, "recompute": {"recompute": "redo"}, "offload": {"offload": "activations"},
}  # fmt: skip
_TOO_LARGE = 1.3


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="offload")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of a training")
    asked = parser.parse_args(words)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    first = ["tiny", "ranks_per_node=1", "val_every=0", "save_every=null", "breakdown_steps=0", *asked.settings]
    config, _ = train_config.compose(first)
    rows = [_run(config, name, device, asked.steps) for name in WAYS]
    if gpu:
        kept = rows[0]["peak_bytes"]
        limit = kept / _TOO_LARGE
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
        print(json.dumps({"limit_bytes": int(limit), "kept_peak_bytes": kept, "too_large": _TOO_LARGE}), flush=True)
        rows += [{**_run(config, name, device, asked.steps), "limited": True} for name in WAYS]
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1))
    return 0


def _run(config: TrainConfig, name: str, device: torch.device, steps: int) -> dict[str, Any]:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"way": name}
    trainer = None
    try:
        trainer = Trainer(dataclasses.replace(config, **WAYS[name]), None, device)
        losses, times = [], []
        for _ in range(steps):
            began = time.perf_counter()
            losses.append(trainer.step()[0].loss)
            times.append(time.perf_counter() - began)
        row |= {"step_ms": statistics.median(times[1:]) * 1e3, "first_ms": times[0] * 1e3, "loss": losses[-1]}
    except torch.OutOfMemoryError as error:
        row["failed"] = str(error).splitlines()[0]
    if trainer is not None:
        trainer.close()
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(row), flush=True)
    return row
