"""The transport nccl without a GPU: its own code, over what fake_cuda.py and fake_nccl.py pretend."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cuda.bindings")

import torch

from commbench import data
from commbench.collectives.reductions import combined_pool
from commbench.launch.job import Job
from commbench.measure.rank import start_rank
from commbench.processes.orphans import die_with_parent
from commbench.rank_info import RankInfo
from commbench.records import Case, Fabric, Measurement, Status
from commbench.run_folder import RunFolder
from commbench.spec import DTYPES
from commbench.sweep import prepare
from commbench.sweep.plan import expand
from commbench.transports.cuda import timer
from commbench.transports.cuda.device import BlockGenerator
from commbench.transports.cuda.timer import EventTimer
from commbench.transports.device import HostGenerator
from tests.conftest import PATIENCE_S, REPOSITORY
from tests.support import fake_cuda, fake_nccl

pytestmark = pytest.mark.timeout(60)
LONGEST_S = 50.0
HOST = REPOSITORY / "tests/kernels/host"
Launch = Callable[..., list[tuple[Case, Measurement]]]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The kernels for two to four ranks."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("kernels")
    paths = {ranks: folder / f"{ranks}.so" for ranks in (2, 3, 4)}
    flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", f"-I{HOST}", str(HOST / "launch.cpp")]
    compilers = [
        subprocess.Popen([compiler, *flags, f"-DRANKS={ranks}", "-o", str(path)]) for ranks, path in paths.items()
    ]
    fake_cuda.before_fork()
    assert not any(process.wait(timeout=PATIENCE_S) for process in compilers)
    return paths


@pytest.fixture
def launch(tmp_path: Path, libraries: dict[int, Path]) -> Launch:
    """Measures the cases of a recipe's words in one launch of forked ranks; all of them, in the plan's order."""

    def measured(*words: str, limits: dict[int, int] | None = None, **machine: Any) -> list[Any]:
        cases = planned(*words)
        folder = RunFolder.create(tmp_path, "test")
        setup = cases[0].setup
        job = Job(run_dir=str(folder.path), attempt="a", launch=0, setup=setup, cases=tuple(cases), timeout_s=LONGEST_S)
        job.save()
        with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
            codes = forked(job, Path(shared), libraries, limits or {}, **machine)
        logs = "\n".join(path.read_text() for path in sorted(job.folder.glob("rank-*.log")))
        assert not any(codes), f"ranks ended with {codes}\n{logs}"
        found = {measurement.case_id: measurement for measurement in folder.measurements()}
        return [(case, found[case.case_id]) for case in cases]

    return measured


def planned(*words: str) -> list[Case]:
    policy = ("transport=nccl", "iters=2", "warmup=1", "launches=1")
    _, configs = prepare.configure(["quick_gpu", *policy, *words])
    return [item.case for item in expand(configs) if not item.skip]


def forked(
    job: Job, shared: Path, libraries: dict[int, Path], limits: dict[int, int], *, reach: bool = True, gpus: int = 0
) -> list[int | None]:
    size = job.setup.layout.ranks
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                die_with_parent()
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not pytest's: into the rank's log
                fake_nccl.install(shared, rank, gpus or size, libraries, reach=reach, limit=limits.get(rank, 1 << 62))
                place: dict[str, Any] = {"rank": rank, "size": size, "local_rank": rank, "local_size": size}
                store = f"file:{job.folder / 'store'}"
                code = start_rank(job, RankInfo(**place, launcher="local", rendezvous=store))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LONGEST_S
    while len(codes) < size:
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid]:  # the others wait for it in vain
                    deadline = min(deadline, time.monotonic() + 1)
        if time.monotonic() > deadline:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def check(found: list[tuple[Case, Measurement]], *, ways: set[str]) -> None:
    bad = [
        (case.collective, case.label, case.mode, case.buffers, case.overlap, case.size_bytes, m.status, m.reason)
        for case, m in found
        if (m.status, m.wrong) != (Status.OK, 0) and "no graph can hold" not in m.reason
    ]
    assert not bad
    assert {case.label for case, _ in found} == ways


MODES = ("mode=isolated,pipelined,graph", "buffers=plain,registered,symmetric", "nodes=1")
ONE_SIDED = {f"symm_store ctas=0 packet_bytes={n}" for n in (0, 65536)} | {
    f"symm_copy_engine memops={n} own_ctas={m}" for n in (0, 1) for m in (0, 2)
}
PARAMS = ("algorithm=all", "packet_bytes=0,65536", "memops=0,1", "own_ctas=0,2")


@pytest.mark.parametrize(("ranks", "sizes"), [(2, (96, 12345)), (3, (12345,))])
def test_every_way_of_equal_blocks(launch: Launch, ranks: int, sizes: tuple[int, ...]) -> None:
    words = (f"sizes.min={sizes[0]}", f"sizes.max={sizes[-1]}", "sizes.factor=128")
    found = launch("collective=all_to_all", f"ranks_per_node={ranks}", *MODES, *PARAMS, *words)
    check(found, ways={"direct", "pairwise window=1", "bruck", *ONE_SIDED})
    for case, measurement in found:
        assert measurement.buffer_pairs == (1 if case.mode == "isolated" else 2) and measurement.clock_mhz == 1000
        assert measurement.slowed_ranks == [*range(1, ranks)]
        assert measurement.links is not None and measurement.links["intra"].gbps > 0
        assert measurement.calls_per_sample == (1 if case.mode == "isolated" else 4)


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_way_of_uneven_blocks(launch: Launch, ranks: int) -> None:
    words = ("collective=all_to_allv", "splits=zipf", "alpha=8", "row_bytes=4", "sizes.min=2000", "sizes.max=2000")
    found = launch(*words, f"ranks_per_node={ranks}", *MODES, *PARAMS)
    check(found, ways={"direct", "pairwise window=1", "counts_first", *ONE_SIDED})


def test_ranks_that_send_or_receive_nothing(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "matrix"
    path.write_text("0 7 0\n0 0 0\n0 1001 129\n")  # nothing for rank 0, nothing from rank 1
    words = ("collective=all_to_allv", "splits=matrix", f"matrix={path}", "ranks_per_node=3", "dtype=uint8")
    found = launch(*words, "mode=isolated,graph", "buffers=plain,symmetric", "nodes=1", *PARAMS)
    check(found, ways={"direct", "pairwise window=1", "counts_first", *ONE_SIDED})


def test_sizes_of_several_thread_blocks_and_buffers_in_turn(launch: Launch) -> None:
    words = ("collective=all_to_all", "ranks_per_node=2", "nodes=1", "cache=cold", "buffers=symmetric", *PARAMS)
    found = launch(*words, "mode=isolated,pipelined,graph", "sizes.min=5000", "sizes.max=200000", "sizes.factor=40")
    check(found, ways={"direct", "pairwise window=1", "bruck", *ONE_SIDED})
    assert {measurement.buffer_pairs for _, measurement in found} == {2}


def test_a_product_beside_it(launch: Launch) -> None:
    words = ("overlap=matmul", "collective=all_to_all", "ranks_per_node=2", "nodes=1", "buffers=plain,symmetric")
    found = launch(*words, *PARAMS, "sizes.min=4096", "sizes.max=4096")
    check(found, ways={"direct", "pairwise window=1", "bruck", *ONE_SIDED})
    for _, measurement in found:
        assert measurement.comm_alone_us and measurement.compute_alone_us and measurement.overlap_percent is not None


def test_other_collectives(launch: Launch) -> None:
    names = "all_gather,reduce_scatter,all_reduce,broadcast,sendrecv"
    words = (f"collective={names}", "algorithm=direct", "in_place=false,true", "ranks_per_node=3", "dtype=bf16")
    found = launch(*words, "mode=isolated,graph", "buffers=registered", "nodes=1", "sizes.min=960", "sizes.max=960")
    check(found, ways={"direct"})
    assert {case.collective for case, _ in found} == set(names.split(","))


def test_groups_and_two_levels(launch: Launch) -> None:
    words = ("collective=all_to_all", "sizes.min=4096", "sizes.max=4096", "mode=isolated,graph", "buffers=symmetric")
    found = launch(*words, *PARAMS, "chunks=2", "nodes=2", "ranks_per_node=2", "groups=world,blocks:2")
    check(found, ways=({case.label for case, _ in found} | ONE_SIDED))
    assert {case.groups for case, _ in found if "symm" in case.label} == {"blocks:2"}
    assert {"2d_intra_first", "2d_inter_first"} <= {case.algorithm for case, _ in found}


def test_without_peer_memory_the_library_still_runs(launch: Launch) -> None:
    words = ("collective=all_to_all", "ranks_per_node=2", "sizes.min=96", "sizes.max=96", *MODES, *PARAMS)
    found = launch(*words, reach=False)
    library = [(case, measurement) for case, measurement in found if case.label not in ONE_SIDED]
    check(library, ways={"direct", "pairwise window=1", "bruck"})
    assert all(measurement.links is None for _, measurement in library)
    assert {(m.status, "reach" in m.reason) for case, m in found if case.label in ONE_SIDED} == {(Status.SKIPPED, True)}


def test_virtual_hosts_share_the_gpus_of_one(launch: Launch) -> None:
    words = (
        "fabric=virtual",
        "nodes=2",
        "ranks_per_node=2",
        "collective=all_to_all",
        "algorithm=direct,2d_intra_first",
    )
    found = launch(*words, "sizes.min=4096", "sizes.max=4096", "buffers=plain,symmetric", "mode=isolated", gpus=2)
    check(found, ways={"direct", "2d_intra_first"})
    assert {measurement.fabric for _, measurement in found} == {Fabric.VIRTUAL}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("algorithm=direct", "buffers=plain"), "OutOfMemoryError: CUDA out of memory"),
        (("algorithm=direct", "buffers=registered"), "OutOfMemoryError: CUDA out of memory"),
        (("algorithm=bruck", "buffers=plain"), "OutOfMemoryError: CUDA out of memory"),
        (("algorithm=direct", "buffers=symmetric"), "OutOfMemoryError: CUDA out of memory"),
        (("algorithm=symm_store", "packet_bytes=0", "buffers=symmetric"), "RuntimeError: CUDA driver error"),
        # 128 KiB fit, the packets do not
        (("algorithm=symm_store", "ctas=1", "packet_bytes=65536", "buffers=symmetric"), "MemoryError: no"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_memory_that_one_rank_lacks_ends_that_case_alone(launch: Launch, words: tuple[str, ...], reason: str) -> None:
    scratch = reason.startswith("MemoryError")
    largest = 131072 if scratch else 524288
    sizes = ("sizes.min=512", f"sizes.max={largest}", f"sizes.factor={largest // 512}")
    found = launch(*words, "collective=all_to_all", "ranks_per_node=2", "nodes=1", *sizes, limits={1: 300_000})
    found = {case.size_bytes: measurement for case, measurement in found}
    assert found[512].status is Status.OK
    assert found[largest].status is Status.OUT_OF_MEMORY, found[largest].reason
    assert found[largest].reason.startswith("rank 0, 1: MemoryError" if scratch else "rank 1: ")


def test_samples_do_not_begin_with_the_longest_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "torch", fake_cuda.Overlay(torch, cuda=fake_cuda.cuda(1, reach=True)))
    monkeypatch.setattr(timer, "_CALIBRATION_S", 0)
    spins = [EventTimer(lambda: None, lambda: None)._spin_us for _ in range(5)]
    assert min(spins) < timer._FIRST_SPIN_US


def test_what_is_pretended_is_as_strict_as_cuda() -> None:
    torn, one, other = fake_cuda.Graph(), fake_cuda.Stream(), fake_cuda.Stream()
    with pytest.raises(RuntimeError, match="not joined"), fake_cuda.capture(torn, one, "thread_local"):
        other.wait_stream(one)
        fake_cuda.enqueue(other.cuda_stream, lambda: None)
    joined, made = fake_cuda.Graph(), torch.zeros(2)
    with fake_cuda.capture(joined, one, "thread_local"):
        other.wait_stream(one)
        one.wait_stream(other)
        made[1:] = torch.ones(1)
        with pytest.raises(RuntimeError, match="is captured"):
            one.synchronize()
        with pytest.raises(RuntimeError, match="not part"):
            fake_cuda.enqueue(fake_cuda.Stream().cuda_stream, lambda: None)
    assert made.tolist() == [0, 0]
    joined.replay()
    assert made.tolist() == [0, 1]
    assert all(hasattr(torch.cuda, name) for name in vars(fake_cuda.cuda(1, reach=True)))


MIB = 1 << 20
SIZES = [
    (0,),
    (1,),
    (7, 7, 7),
    (8, 16, 16),
    (MIB - 4,),
    (MIB, MIB),
    (MIB + 4, MIB + 4),
    (2 * MIB + 12, 0, 20),
    (65 * MIB + 20,),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["moved", "uint8", "fp16", "fp32"])
def test_data_made_on_the_device_are_those_of_the_host(sizes: tuple[int, ...], kind: str) -> None:
    """And both see the same difference: how many elements, where the first is, and what is there."""
    itemsize = DTYPES[kind] if kind != "moved" else 4 if all(nbytes % 4 == 0 for nbytes in sizes) else 1
    if any(nbytes % itemsize for nbytes in sizes) or (kind != "moved" and sum(sizes) > 3 * MIB):
        return
    pool = None if kind == "moved" else combined_pool(kind, "sum", ranks=3, largest=max(sizes))
    pattern = data.Pattern([data.Block(key, nbytes) for key, nbytes in enumerate(sizes)], itemsize, pool)
    on_device, host, nbytes = BlockGenerator(torch.device("cpu")), HostGenerator(), sum(sizes)
    array, right = torch.full((nbytes + 8,), 77, dtype=torch.uint8), pattern.whole(9)
    part = array[4 : 4 + nbytes]
    for invert in (True, False):
        on_device.fill(part, pattern, 9, invert=invert)
        assert np.array_equal(part.numpy(), ~right if invert else right)
        assert (array[:4] == 77).all() and (array[4 + nbytes :] == 77).all()
        (seen,) = on_device.read([on_device.compare(part, pattern, 9)])
        assert seen == host.compare(part, pattern, 9) and seen.elements == (nbytes // itemsize if invert else 0)
    places = sorted({at for at in (nbytes // 3, MIB - 1, MIB, 64 * MIB, nbytes - 1) if 0 <= at < nbytes})
    for place in places:
        part[place] += 1
    seen, of_another_call = on_device.read([on_device.compare(part, pattern, salt) for salt in (9, 8)])
    assert seen == host.compare(part, pattern, 9) and seen.elements == len({place // itemsize for place in places})
    assert seen.at == (places[0] // itemsize * itemsize if places else -1)
    assert of_another_call.elements >= nbytes // itemsize // 2
