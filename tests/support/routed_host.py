"""The kernels of routed.cu on threads of a CPU, for the ranks of `routed_ranks`."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

from tests.conftest import REPOSITORY
from tests.support.routed_ranks import RoutedRanks

HOST = REPOSITORY / "tests/kernels/host"
THREADS = 4


class OnHost:
    """The buffers of ranks in this process, and their calls on threads of it."""

    def __init__(self, folder: Path) -> None:
        """folder: for what is compiled, once for each number of ranks."""
        self._folder, self._kept = folder, list[np.ndarray]()

    @staticmethod
    def missing() -> str:
        return "" if shutil.which("g++") else "no g++"

    def place(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)

    def wrong(self, ranks: RoutedRanks, calls: int, *, resident: int = 3, most_us: int = 100, seed: int = 0) -> int:
        """Return the wrong bytes of so many calls, of different routings by turns; `resident` blocks run at a time."""
        flat = [call for of_ranks in ranks.calls for call in of_ranks]
        right = [one for of_ranks in ranks.expected for one in of_ranks]
        pointers = ctypes.c_void_p * len(flat)
        return int(self._library(ranks.ranks).run(
            ranks.kernel.encode(), pointers(*map(ctypes.addressof, flat)), (ctypes.c_void_p * ranks.ranks)(*ranks.outs),
            (ctypes.c_uint64 * len(flat))(*map(len, right)), pointers(*(one.ctypes.data for one in right)),
            len(ranks.calls), ranks.blocks, min(resident, ranks.blocks), THREADS, calls, most_us, seed,
        ))  # fmt: skip

    def _library(self, ranks: int) -> ctypes.CDLL:
        path = self._folder / f"{ranks}.so"
        if not path.exists():
            flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", f"-DRANKS={ranks}", "-DUNROLL=2", f"-I{HOST}"]
            subprocess.run(["g++", *flags, str(HOST / "routed.cpp"), "-o", str(path)], check=True)
        loaded = ctypes.CDLL(str(path))
        loaded.run.restype = ctypes.c_uint64
        return loaded
