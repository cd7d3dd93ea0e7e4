"""Plain copies between a GPU and its host, as nvbandwidth times them: python -m tests.bench host_copies [--out FILE].

Beside `commbench sweep host_copies`, which goes through torch. Memory from cudaHostAlloc, cudaMemcpyAsync on a stream,
16 copies between two events behind a kernel that spins while they are enqueued; median of the samples. `both` are a
copy each way on two streams, each of the size, and their sum as the rate of nvbandwidth's bidirectional tests.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

_COPIES, _SAMPLES = 16, 5
_SPIN_CYCLES = 20_000_000


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="host_copies")
    parser.add_argument("--sizes", default="4096,65536,1048576,16777216,268435456,536870912")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    rows = []
    for size in map(int, asked.sizes.split(",")):
        for way in ("h2d", "d2h", "both"):
            us = _time_us(way, size)
            moved = size * (2 if way == "both" else 1)
            rows.append({"way": way, "size_bytes": size, "time_us": us, "gbps": moved / us / 1e3})
            print(json.dumps(rows[-1]), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1))
    return 0


def _time_us(way: str, size: int) -> float:
    """Return microseconds of one copy, or of one each way at the same time."""
    from cuda.bindings import runtime as cudart

    host = [_ok(cudart.cudaHostAlloc(size, 0)) for _ in range(2)]
    device = [_ok(cudart.cudaMalloc(size)) for _ in range(2)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    kinds = cudart.cudaMemcpyKind
    to_device = (device[0], host[0], kinds.cudaMemcpyHostToDevice, streams[0])
    from_device = (host[1], device[1], kinds.cudaMemcpyDeviceToHost, streams[1])
    copies = {"h2d": [to_device], "d2h": [from_device], "both": [to_device, from_device]}[way]
    times = []
    for _ in range(_SAMPLES):
        torch.cuda.synchronize()
        main_stream = torch.cuda.current_stream()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SPIN_CYCLES)
        begin.record()
        for _, _, _, stream in copies:
            stream.wait_stream(main_stream)
        for _ in range(_COPIES):
            for to, source, kind, stream in copies:
                _ok(cudart.cudaMemcpyAsync(to, source, size, kind, stream.cuda_stream))
        for _, _, _, stream in copies:
            main_stream.wait_stream(stream)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / _COPIES)
    for pointer in host:
        _ok(cudart.cudaFreeHost(pointer))
    for pointer in device:
        _ok(cudart.cudaFree(pointer))
    return statistics.median(times)


def _ok(answer: tuple[Any, ...]) -> Any:
    error, *values = answer
    if int(error):
        raise RuntimeError(f"CUDA says {error}")
    return values[0] if values else None
