"""The kernels of one_sided.cu on threads of a CPU: every byte, whatever the ranks' and blocks' order."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commbench_kernels import one_sided, scratch

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


def run(
    library: ctypes.CDLL,
    kernel: str,
    matrix: np.ndarray,
    *,
    blocks: int,
    resident: int,
    calls: int,
    shift: int = 0,
    most_us: int = 200,
    seed: int = 0,
) -> int:
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
        if kernel.startswith("store"):  # for each peer
            blocks, resident = blocks * ranks, resident * ranks if resident > 1 else 1
        for matrix in (even(ranks, 16), even(ranks, 4096), uneven(ranks, KERNELS[kernel])):
            assert run(library(ranks), kernel, matrix, blocks=blocks, resident=resident, calls=6) == 0


@pytest.mark.parametrize("kernel", ["store_1", "packets_1"])
def test_odd_sizes_at_odd_addresses(library, kernel: str) -> None:
    matrix = np.array([[7, 1, 0], [129, 3, 65], [31, 2, 1001]])
    assert run(library(3), kernel, matrix, blocks=6, resident=6, calls=6, shift=3) == 0


@pytest.mark.parametrize("kernel", ["store_16", "store_4", "packets_8"])
def test_what_is_no_whole_number_of_elements(library, kernel: str) -> None:
    """Of two ranks, whose blocks begin at multiples of eight whatever is in the last."""
    matrix = np.array([[64, 1001], [80, 37]])
    assert run(library(2), kernel, matrix, blocks=2, resident=2, calls=6) == 0


@pytest.mark.parametrize("kernel", ["store_16", "packets_8"])
def test_many_calls_without_a_pause(library, kernel: str) -> None:
    assert run(library(2), kernel, even(2, 256), blocks=2, resident=2, calls=400, most_us=0) == 0


@pytest.mark.parametrize(("kernel", "nbytes"), [("own_16", 1007), ("own_1", 333)])
def test_the_own_block_alone(library, kernel: str, nbytes: int) -> None:
    matrix = np.array([[nbytes, 0], [0, 16]])
    assert run(library(2), kernel, matrix, blocks=3, resident=3, calls=4) == 0


def test_every_peer_has_as_many_blocks() -> None:
    for ranks in (2, 3, 8, 72):
        for largest in (0, 1, 1 << 14, 1 << 20, 1 << 24, 1 << 32):
            for ctas in (0, 1, 16, 128):
                blocks, threads = one_sided.store_shape(ranks, largest, ctas)
                assert blocks % ranks == 0 and ranks <= blocks <= scratch.BLOCKS and threads in (256, 512)
    assert one_sided.store_shape(2, 1 << 15) == (4, 256) and one_sided.store_shape(2, 1 << 25) == (128, 512)
    assert one_sided.store_shape(8, 1 << 25, 20) == (24, 512)


def test_the_layout_of_the_scratch_is_that_of_the_kernels() -> None:
    source = Path(REPOSITORY / "kernels/commbench_kernels/flags.cuh").read_text()
    assert f"constexpr u32 BLOCKS = {scratch.BLOCKS};" in source
    for ranks in (2, 3, 8, 72):
        counters, end = 4 * scratch.BLOCKS, scratch.flag_bytes(ranks)
        first, second = (scratch.memory_flags(ranks, which) for which in (0, 1))
        assert counters <= first and first + 4 * ranks <= second and second + 4 * ranks <= end
        assert end % scratch.PACKET_BYTES == 0  # where packets begin


def test_they_compile_for_gpus() -> None:
    pytest.importorskip("cuda.bindings")
    from commbench_kernels import compiler

    try:
        for ranks in (2, 8, 72):
            code = compiler.compile_source("one_sided.cu", "sm_90", {"RANKS": ranks})
            assert code.startswith(b"\x7fELF") and b"packets_8" in code
    except RuntimeError as error:
        if isinstance(error, compiler.CudaError):
            raise
        pytest.skip(str(error).splitlines()[0])
    with pytest.raises(compiler.CudaError, match="RANKS"):
        compiler.compile_source("one_sided.cu", "sm_90", {})


def test_the_reference_is_an_all_to_all() -> None:
    import torch

    inputs = [torch.arange(3), torch.arange(10, 14), torch.arange(20, 22)]
    outputs = one_sided.reference(inputs, [[1, 0, 2], [2, 1, 1], [0, 0, 2]])
    assert [out.tolist() for out in outputs] == [[0, 10, 11], [12], [1, 2, 13, 20, 21]]


def test_the_argument_is_the_struct_of_the_kernels() -> None:
    """Six words of a peer, then the slot and the rank; up to 72 ranks fit where a kernel's arguments are."""
    block = one_sided.PeerBlock(source=1, target=2, arrival=3, scratch=4, sent=5, received=6)
    argument = one_sided._argument(1, [block, block], 7)
    assert bytes(argument) == np.array([1, 2, 3, 4, 5, 6] * 2 + [7, 1], dtype=np.uint64).tobytes()
    assert ctypes.sizeof(one_sided._argument(0, [block] * 72, 0)) <= 4096


def test_the_widest_access_that_addresses_allow() -> None:
    block = one_sided.PeerBlock(source=64, target=128, arrival=256, scratch=0, sent=5, received=6)
    assert one_sided._alignment([block]) == 16
    assert one_sided._alignment([block, dataclasses.replace(block, target=8)]) == 8
    assert one_sided._alignment([dataclasses.replace(block, arrival=255)]) == 1


def test_a_roofline_is_the_link_and_the_handshakes() -> None:
    assert one_sided.least_us(400_000, 400, 1, packets=False) == 3
    assert one_sided.least_us(400_000, 400, 1, packets=True) == 3
