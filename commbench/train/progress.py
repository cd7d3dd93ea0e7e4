"""What a training tells while it runs: metrics as they are on stdout, in words on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commbench.console import Console
from commbench.launch.job import Job
from commbench.records import network_note
from commbench.run_folder import RunFolder, Tail
from commbench.serialise import unseal
from commbench.train import results, tensorboard


class TrainConsole(Console):
    """Shows a live line on a terminal, a plain one now and then elsewhere."""

    def progress(self, done: int, total: int, seconds_left: float | None, what: str, best: str = "") -> None:
        if self._progress:
            super().progress(done, total, seconds_left, what, best)
        elif not self._quiet and (time.monotonic() - self._said > 10 or done in (0, total)):
            self._said = time.monotonic()
            self._console.print(f"step {done} of {total}: {what}")


class TrainProgress:
    """Writes new lines of metrics to stdout as they are, and to stderr in words."""

    def __init__(self, folder: RunFolder, job: Job, console: TrainConsole, *, stdout: str) -> None:
        self._stdout = stdout
        self._console = console
        self._folder = folder
        self._config, self._about_start = job.settings["config"], job.settings["about"]
        self._path = folder.path / results.METRICS
        self._metrics: Tail | None = None
        self._bits: float | None = None
        self._scalars: tensorboard.Scalars | None = None
        self.ended: dict[str, Any] | None = None

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Tell what rank 0 is at."""
        match event["event"]:
            case "begin":
                # Not for settings that the ranks refuse: a run that could go on stays as it was.
                self._folder.write_json("config.json", self._config)
                self._folder.link_latest()
                # Only now: a run that goes on first drops the lines of steps that it will make again.
                self._metrics, kept = _after(self._path, event["step"])
                if self._config["tensorboard"]:
                    self._scalars = tensorboard.Scalars(self._folder.path / tensorboard.FOLDER, kept)
                self._about(event)
            case "note":
                self._console.note(event["text"])
            case "end":
                self.ended = dict(event)

    def read_metrics(self) -> bool:
        """Tell the steps made since the last call; return whether there were any."""
        lines = self._metrics.read() if self._metrics else []
        for line in lines:
            self._line(line)
        if self._scalars is not None and lines:
            self._scalars.add(lines)
        return bool(lines)

    def _about(self, event: Mapping[str, Any]) -> None:
        peak = event["peak_flops"]
        # What a model that learns nothing but frequencies would reach: for whoever draws the loss.
        its = {"status": "running", "entropy": event["entropy"], "fabric": event["fabric"], **self._about_start}
        self._folder.write_json("run.json", {**self._folder.read_json("run.json"), **its})
        self._console.note(
            f"text: unigram entropy {event['entropy']:.3f} bits a byte; "
            + (f"mfu of {peak / 1e12:g} TFLOP/s a rank" if peak else "no mfu: no peak is known, set peak_tflops")
            + (f"; going on after step {event['step']}" if event["step"] else "")
        )
        if note := network_note(event["fabric"]):
            self._console.note(note)

    def _line(self, line: Mapping[str, Any]) -> None:
        if self._stdout == "json":
            write(json.dumps(line))
        if line["val_bits_per_byte"] is not None:
            self._bits = line["val_bits_per_byte"]
            if self._stdout == "table":
                write(f"step {line['step']}: {self._bits:.4f} bits a byte held out, loss {line['loss']:.4f}")
        words = [f"loss {line['loss']:.3f}", f"{line['tokens_per_s']:.0f} tokens/s"]
        words += [f"mfu {100 * line['mfu']:.1f} %"] if line["mfu"] is not None else []
        words += [f"a2a {line['a2a_us'] / 1e3:.1f} ms"] if line["a2a_bytes"] else []
        words += [f"{100 * line['drop_rate']:.1f} % dropped"] if line["drop_rate"] is not None else []
        words += [f"{self._bits:.3f} bits/byte"] if self._bits is not None else []
        self._console.progress(line["step"], self._config["steps"], None, ", ".join(words))


def write(text: str) -> None:
    """Write a line to stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _after(path: Path, step: int) -> tuple[Tail, list[dict[str, Any]]]:
    """Return the lines of later steps as they come, and those of the steps before."""
    kept, size = [], 0
    if path.exists() and step:
        for raw in path.read_bytes().splitlines(keepends=True):
            if (line := results.parse_step(unseal(raw)))["step"] <= step:
                kept.append(line)
                size += len(raw)
    return Tail(path, offset=size), kept
