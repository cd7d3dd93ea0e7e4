"""What a rank of `commbench train` runs: `commbench.measure.rank` imports this by its name and calls `run`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

# What is imported at its first use otherwise, by every rank: that takes longer than all the rest.
import torch._dynamo
import torch.distributed as dist
import torch.distributed.optim

import commbench
from commbench import transports, variables
from commbench.errors import CommbenchError
from commbench.files import write_atomically
from commbench.launch.job import Job
from commbench.measure import readback
from commbench.rank_info import RankInfo
from commbench.records import Fabric
from commbench.run_folder import append_line, append_record, read_lines, repair
from commbench.serialise import parse_json, seal
from commbench.train.config import REFUSED, STOP, TrainConfig
from commbench.train.results import BREAKDOWN, CHECKPOINTS, METRICS
from moe_ref.dispatch import describe as describe_dispatch
from moe_ref.recorded_routing import record_routing
from moe_ref.training import breakdown, checkpoint
from moe_ref.training.checkpoint import Checkpoint, OtherRankFailed
from moe_ref.training.resumed import check_same
from moe_ref.training.trainer import Trainer

if TYPE_CHECKING:
    from commbench.launch.placement import RankPlacement
    from commbench.measure.events import Events


def run(job: Job, info: RankInfo, shared: Any, events: Events, rank_placement: RankPlacement) -> None:
    """Train until the last step, or until somebody asks to stop. The user's errors go to refused.jsonl too."""
    stop = _Stop(job, info)
    try:
        variables.check(job.setup.env, os.environ)
        config = TrainConfig.of(job.settings["config"])
        events.doing = "the rendezvous of the ranks"
        device = _connect(config, job, info, shared)
        placed = rank_placement.check("after the ranks have connected")
        readback.describe_rank(
            job,
            info,
            transports.load(config.transport).versions(),
            _identity(device),
            dispatch=describe_dispatch(config.permute, device),
            binding=rank_placement.describe(placed),
        )
        comm = None
        if info.size > 1:
            comm = commbench.communicator(profile=config.profile, allow_mismatch=config.allow_mismatch)
        trainer = Trainer(config, comm, device)
        machines = 1 if comm is None else comm.machines
        between = Fabric.between(config.nodes, machines, emulated=config.emulated is not None)
        with _recording(config, trainer):
            _train(trainer, Path(job.run_dir), events, stop, between)
        if config.record_routing is not None and info.rank == 0:
            events.tell(
                "note", text=f"routing trace: {config.record_routing}; router=trace trace=FILE of a sweep takes it"
            )
        trainer.close()
        if comm is not None:
            _note(job, info, comm.explain())
            comm.close()
    except CommbenchError as error:
        if not isinstance(error, OtherRankFailed):
            refused = {"rank": info.rank, "error": str(error), "hint": error.hint, "exit_code": error.exit_code}
            append_line(job.folder / REFUSED, json.dumps(refused), durable=False)
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def _recording(config: TrainConfig, trainer: Trainer) -> contextlib.AbstractContextManager[None]:
    """Return what writes the experts of the first passes, where that is asked for."""
    file = config.record_routing
    return contextlib.nullcontext() if file is None else record_routing(trainer.model, file)


def _train(trainer: Trainer, folder: Path, events: Events, stop: _Stop, between: Fabric) -> None:
    config, lead = trainer.config, trainer.rank == 0
    metrics, checkpoints = folder / METRICS, folder / CHECKPOINTS
    if lead:
        checkpoints.mkdir(exist_ok=True)
    if (found := checkpoint.latest(checkpoints)) is not None:
        events.doing = f"reading {found.name}"
        saved = Checkpoint(found)
        check_same(config, saved)
        trainer.load(saved)
        del saved  # and with it the map of files that will be deleted
    if lead:
        _forget(metrics, trainer.done)
        if (folder / BREAKDOWN).exists():
            _forget(folder / BREAKDOWN, trainer.done)
        events.tell("begin", step=trainer.done, peak_flops=trainer.peak_flops, entropy=trainer.text.entropy(),
                    fabric=between)  # fmt: skip
    stopped = False
    recorder = breakdown.Recorder(
        trainer, folder, barrier=trainer.barrier, note=lambda text: events.tell("note", text=text)
    )
    while trainer.done < config.steps and not stopped:
        events.doing = f"step {trainer.done + 1}"
        line, stopped = recorder.step(stop=stop.asked())
        if lead:
            for text in trainer.notes:
                events.tell("note", text=text)
            trainer.notes.clear()
        last = stopped or trainer.done == config.steps
        if trainer.done == config.steps or (config.val_every and trainer.done % config.val_every == 0):
            line.val_bits_per_byte = trainer.evaluate()
        due = last or (config.save_every and trainer.done % config.save_every == 0)
        saves = config.save_every is not None and bool(due)
        if lead:
            append_record(metrics, line.to_json(), durable=saves)  # whoever goes on from there makes no such line again
        events.beat()
        if saves:
            events.doing = f"saving step {trainer.done}"
            trainer.save(checkpoints)
            events.beat()
    if lead:
        finished = trainer.done >= config.steps
        events.tell("end", step=trainer.done, finished=finished, saved=config.save_every is not None)


def _connect(config: TrainConfig, job: Job, info: RankInfo, shared: Any) -> torch.device:
    """Bring the ranks together as torch's default group, and return where this rank computes."""
    if config.transport == "gloo":
        if info.size > 1:
            transports.load("gloo")(job.transport_options).connect(info, shared)
        return torch.device("cpu")
    transports.check("nccl")
    from commbench.transports.cuda.device import index_of
    from commbench.transports.gloo import LIBRARY_TIMEOUT, meet

    device = torch.device("cuda", index_of(info))
    torch.cuda.set_device(device)
    if info.size > 1:
        store = shared if shared is not None else meet(info)
        dist.init_process_group(
            "nccl", store=store, rank=info.rank, world_size=info.size, timeout=LIBRARY_TIMEOUT, device_id=device
        )
    return device


def _identity(device: torch.device) -> dict[str, Any]:
    """Return which GPU this rank computes on; empty where it computes on the host."""
    if device.type != "cuda":
        return {}
    from commbench.transports.cuda.device import identity_of

    return identity_of(device.index)


def _forget(file: Path, done: int) -> None:
    """Drop lines of steps that a killed run had made since its last checkpoint: they will be made again."""
    repair(file)
    lines = [line for line in read_lines(file, parse_json) if line["step"] <= done]
    write_atomically(file, "".join(seal(json.dumps(line)) + "\n" for line in lines))


def _note(job: Job, info: RankInfo, text: str) -> None:
    """Write which algorithms the exchanges took, for whoever wants to know afterwards."""
    if info.rank == 0:
        write_atomically(job.folder / "communicator.txt", text + "\n")


class _Stop:
    """Knows whether this rank is asked to end: by SIGTERM or Ctrl-C where a launcher passes them on, else by a file."""

    def __init__(self, job: Job, info: RankInfo) -> None:
        self._path = job.folder / STOP
        self._looks = info.rank == 0
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self) -> bool:
        return self._asked or (self._looks and self._path.exists())
