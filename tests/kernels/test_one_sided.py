"""The kernels of one_sided.cu on threads of a CPU: every byte, whatever the ranks' and blocks' order."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from commbench_kernels import scratch
from tests.conftest import REPOSITORY


HOST = REPOSITORY / "tests/kernels/host"
THREADS = 8


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    """A function that compiles the kernels for so many ranks, once."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("kernels")

    def build(ranks: int) -> ctypes.CDLL:
        path = folder / f"{ranks}.so"
        if not path.exists():
            flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", f"-DRANKS={ranks}", f"-I{HOST}"]
            subprocess.run([compiler, *flags, str(HOST / "run.cpp"), "-o", str(path)], check=True)
        loaded = ctypes.CDLL(str(path))
        loaded.run.restype = ctypes.c_uint64
        return loaded

    return build


def run(library: ctypes.CDLL, kernel: str, matrix: np.ndarray, *, blocks: int, resident: int, calls: int, shift: int = 0,
        most_us: int = 200, seed: int = 0) -> int:  # fmt: skip
    """Wrong bytes after `calls` calls. `shift`: bytes by which input and output miss a multiple of 64."""
    ranks = len(matrix)
    slot = scratch.slot_bytes(int(matrix.max()), blocks, THREADS)
    total = scratch.flag_bytes(ranks) + scratch.packet_bytes(ranks, slot, blocks)
    sizes = np.ascontiguousarray(matrix, dtype=np.uint64)
    u64 = ctypes.c_uint64
    return int(
        library.run(kernel.encode(), sizes.ctypes.data_as(ctypes.POINTER(u64)), u64(total), u64(slot), blocks, resident,
                    THREADS, calls, most_us, shift, seed)
    )  # fmt: skip


def even(ranks: int, nbytes: int) -> np.ndarray:
    return np.full((ranks, ranks), nbytes)


def uneven(ranks: int, unit: int) -> np.ndarray:
    """Some empty, one rank that gets nothing from anybody, one long block."""
    matrix = np.random.default_rng(ranks).integers(0, 40, (ranks, ranks)) * unit
    matrix[:, 0] = 0
    matrix[0, -1] = 200 * unit
    return matrix


KERNELS = {"store_16": 16, "store_4": 4, "store_1": 1, "packets_8": 8, "packets_1": 1}  # and the alignment of each


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_byte_arrives(library, kernel: str, ranks: int) -> None:
    for blocks, resident in ((1, 1), (3, 3), (3, 1)):  # all at once, and one after the other
        for matrix in (even(ranks, 16), even(ranks, 4096), uneven(ranks, KERNELS[kernel])):
            assert run(library(ranks), kernel, matrix, blocks=blocks, resident=resident, calls=6) == 0


@pytest.mark.parametrize("kernel", ["store_1", "packets_1"])
def test_odd_sizes_at_odd_addresses(library, kernel: str) -> None:
    assert run(library(3), kernel, np.array([[7, 1, 0], [129, 3, 65], [31, 2, 1001]]), blocks=2, resident=2, calls=6, shift=3) == 0  # fmt: skip


@pytest.mark.parametrize("kernel", ["store_16", "store_4", "packets_8"])
def test_what_is_no_whole_number_of_elements(library, kernel: str) -> None:
    """Of two ranks, whose blocks begin at multiples of eight whatever is in the last."""
    matrix = np.array([[64, 1001], [80, 37]])
    assert run(library(2), kernel, matrix, blocks=2, resident=2, calls=6) == 0


@pytest.mark.parametrize("kernel", ["store_16", "packets_8"])
def test_many_calls_without_a_pause(library, kernel: str) -> None:
    assert run(library(2), kernel, even(2, 256), blocks=2, resident=2, calls=400, most_us=0) == 0


def test_the_layout_of_the_scratch_is_that_of_the_kernels() -> None:
    source = Path(REPOSITORY / "kernels/commbench_kernels/one_sided.cu").read_text()
    assert f"constexpr u32 BLOCKS = {scratch.BLOCKS};" in source
