"""What every rank runs: connect, then measure the cases of one launch in order. Rank 0 writes.

`python -m commbench.measure.rank ORDER.json` is what launchers start; `local` calls `run` in ranks that it forked.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from commbench import fabric, transports, variables
from commbench.algorithms import outside
from commbench.errors import said
from commbench.launch import placement
from commbench.launch.job import FAILURES, Job
from commbench.machine import infiniband
from commbench.measure import readback
from commbench.measure.case import measure_case, write_samples
from commbench.measure.events import Events
from commbench.processes import streams
from commbench.processes.orphans import die_with_parent, exit_if_orphaned
from commbench.rank_info import RankInfo, detect
from commbench.run_folder import RunFolder, append_line
from commbench.units import format_size

RANK_INTERRUPTED = 130
_kept: list[BaseException] = []  # errors, whose frames hold buffers that a broken GPU could not free without an abort
RANK_FAILED = 1  # exit code of a rank that raised, and wrote what


def run(job: Job, info: RankInfo, *, shared: Any = None) -> None:
    """Measure every case of `job` as rank `info.rank`, or do what its program does.

    An exception in a rank ends it; the parent sees that.
    """
    folder = RunFolder(Path(job.run_dir))
    folder.ranks_lock.take(shared=True)  # a resume waits until all ranks of the killed run are gone
    for one in outside.read(job.algorithms):
        outside.provide(one)
    if job.before:
        importlib.import_module(job.before).run(job, info)
    rank_placement = placement.take(job, info)
    if job.setup.emulated:
        fabric.enter(job.setup.emulated.host(info.rank, job.setup.ranks_per_node))
    events = Events(job, info.rank)  # after entering the network, which a thread from before would not see
    try:
        if job.program:
            importlib.import_module(job.program).run(job, info, shared, events, rank_placement)
        else:
            _run_cases(job, info, shared, folder, events, rank_placement)
    finally:
        events.tracer.stop()


def _run_cases(
    job: Job, info: RankInfo, shared: Any, folder: RunFolder, events: Events, rank_placement: placement.RankPlacement
) -> None:
    asked = job.setup.env
    variables.check(asked, os.environ)
    ports = infiniband.ports() if info.local_rank == 0 else {}
    transport = transports.load(job.setup.transport)(job.transport_options)
    transport.connect(info, shared)
    before = transport.device.condition()
    rank_placement.check_gpu(transport.device.identity())
    placed = rank_placement.check("after the ranks have connected")
    binding = rank_placement.describe(placed)
    device = {**transport.device.identity(), "before": before}
    readback.describe_rank(job, info, transport.versions(), device, binding=binding)
    cpus, memory = readback.places(transport, placed)
    if infiniband.asked(asked) and not ports and info.rank == 0:
        events.tell("note", text=f"no InfiniBand or RoCE port on this host, so that {', '.join(asked)} decides nothing")
    between = readback.fabric_of(job, transport)
    links = readback.links_of(job, transport, between)
    for place, case in enumerate(job.cases):
        events.doing = f"{case.label}, {format_size(case.size_bytes)}"
        events.tell("begin", case_id=case.case_id)
        measurement, timing = measure_case(job, transport, info, case, place, events)
        measurement = replace(measurement, fabric=between, links=links, rank_cpus=cpus, rank_memory=memory)
        readback.check_places(transport, rank_placement)
        if info.rank == 0:
            if timing is not None:
                write_samples(folder, job, case, timing, one_clock=info.local_size == info.size)
            folder.append_measurement(measurement)
        # Nobody begins the next case before this one is on disk.
        transport.all_gather([0.0])
    counted = infiniband.growth(ports, infiniband.ports()) if ports else {}
    if counted and infiniband.asked(asked) and info.rank == 0:
        events.tell("note", text=f"{infiniband.mode(asked) or 'routing'}: {infiniband.evidence(counted)}")
    nccl_read = variables.nccl_told(job.folder)
    if nccl_read is not None and info.rank == 0 and (text := variables.silence(asked, nccl_read)):
        events.tell("note", text=text)
    events.tell("end")
    after = {"after": transport.device.condition()} if before else {}
    if after or counted or nccl_read:
        readback.describe_rank(
            job, info, transport.versions(), device | after, binding=binding, ports=counted, told=nccl_read or {}
        )
    transport.close()


def start_rank(job: Job, info: RankInfo, *, shared: Any = None) -> int:
    """Run one rank with its output in its own log; the exit code."""
    log = os.open(job.folder / f"rank-{info.rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    streams.guard()
    try:
        run(job, info, shared=shared)
    except KeyboardInterrupt:  # somebody's wish, and no failure
        return RANK_INTERRUPTED
    except BaseException as error:
        traceback.print_exc()
        note_failure(job.folder, info.rank, error)
        _kept.append(error)
        return RANK_FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def note_failure(folder: Path, rank: int, error: BaseException) -> None:
    """Write down why a rank ends, where whoever watches the launch looks for it."""
    details = {"rank": rank, "error": said(error)}
    if isinstance(error, OSError) and error.errno is not None:
        details["errno"] = error.errno  # a full disk is no fault of the case
        details["file"] = error.filename if isinstance(error.filename, str) else None
    with contextlib.suppress(OSError):  # what cannot be written, the parent finds out itself
        append_line(folder / FAILURES, json.dumps(details), durable=False)


def main() -> None:
    die_with_parent()
    try:
        job = Job.load(sys.argv[1])
        exit_if_orphaned(job.parent_pid, job.parent_started)
        info = detect(os.environ)
        if info is None:
            raise RuntimeError("commbench.measure.rank is started by a launcher; use `commbench sweep`")
    except Exception as error:
        # The other ranks may wait for this one, so the sweep must hear of it.
        note_failure(Path(sys.argv[1]).parent, -1, error)
        raise
    if info.launcher != "torchrun":  # which alone says where to meet
        info = replace(info, rendezvous=f"address:{job.folder / 'address'}")
    code = start_rank(job, info)
    if code or job.setup.transport != "mpi":
        os._exit(code)
    # MPICH takes leave of mpiexec when the process ends in the ordinary way; without that its mpiexec kills the others.


if __name__ == "__main__":
    main()
