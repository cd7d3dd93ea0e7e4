"""Forked ranks for tests and benchmarks: function(transport) on each; rank 0's result comes back as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commbench import transports
from commbench.rank_info import RankInfo


def forked(size: int, rank: Callable[[int], None]) -> list[int]:
    """`rank(number)` in a process of its own for each; how they ended: 0 where nothing was raised."""
    if (cuda := sys.modules.get("torch.cuda")) is not None and cuda.is_initialized():
        raise RuntimeError("this process has started CUDA, which nothing that is forked from it can use: fork before")
    pids = []
    for number in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                rank(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def on_ranks(name: str, size: int, function: Callable[[Any], Any]) -> Any:
    """On `size` ranks of the transport `name`, which must meet at a file: gloo, nccl."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = transports.load(name)
    with tempfile.TemporaryDirectory() as folder:
        store, answer = str(Path(folder) / "store"), Path(folder) / "answer"

        def body(rank: int) -> None:
            transport = made({"layout": (1, size)})
            place = {"rank": rank, "size": size, "local_rank": rank, "local_size": size}
            transport.connect(RankInfo(**place, launcher="bench", rendezvous=f"file:{store}"))
            result = function(transport)
            if rank == 0:
                answer.write_text(json.dumps(result))
            transport.barrier()

        codes = forked(size, body)
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        return json.loads(answer.read_text())


def on_gloo(size: int, function: Callable[[Any], Any]) -> Any:
    return on_ranks("gloo", size, function)


def run_program(program: str, *words: str, ranks: int = 1, folder: Path) -> str:
    """Run the text of a program as torchrun does, on so many ranks in `folder`; return what they print, by ranks.

    Ranks are forked from here, where torch is imported already: torchrun itself imports it once more for each.
    """
    from torch.distributed import TCPStore

    path = folder / "program.py"
    path.write_text(program)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    shared |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1}

    def body(rank: int) -> None:
        os.environ.update({name: str(value) for name, value in shared.items()}, RANK=str(rank), LOCAL_RANK=str(rank))
        os.chdir(folder)
        sys.argv = [str(path), *words]
        with open(folder / f"printed-{rank}", "w") as file, contextlib.redirect_stdout(file):
            runpy.run_path(str(path), run_name="__main__")

    codes = forked(ranks, body)
    assert not any(codes), f"ranks ended with {codes}: see above"
    return "".join((folder / f"printed-{rank}").read_text() for rank in range(ranks))
