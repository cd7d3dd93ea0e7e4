"""Logs of other programs that nobody measured, line by line as these print them."""

from __future__ import annotations

from collections.abc import Sequence

from commbench.output.nccl_tests import float_text


def nccl_tests(
    nodes: int, per_node: int, points: Sequence[tuple[int, float]], *, hosts: Sequence[str] = (), title: str = "nccl"
) -> str:
    """Return what alltoall_perf 2.19 prints of these (bytes, microseconds), a process for each rank.

    hosts: of each rank; without, as many on each node.
    """
    n = nodes * per_node
    hosts = hosts or [f"gpu-{rank // per_node + 1:02d}" for rank in range(n)]
    lines = [
        f"# {title}-tests version 2.19.6 {title}-headers=22809 {title}-library=22809",
        "# Collective test starting: alltoall_perf",
        f"# nThread 1 nGpus 1 minBytes {points[0][0]} maxBytes {points[-1][0]} step: 4(factor) warmup iters: 1 "
        "iters: 20 agg iters: 1 validation: 1 graph: 0 unalign: 0",
        "#",
        "# Using devices",
    ]
    for rank, host in enumerate(hosts):
        lines.append(
            f"#  Rank {rank:2d} Group  0 Pid {4000 + rank:6d} on {host:>10} device {rank % per_node:2d} "
            f"[0000:{0x18 + rank % per_node:02x}:00] NVIDIA H100 80GB HBM3"
        )
    lines += [
        "#",
        "#                                                              out-of-place                       in-place",
        f"# {'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}"
        + 2 * f"  {'time':>7}  {'algbw':>6}  {'busbw':>6}  {'#wrong':>6}",
        f"# {'(B)':>10}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}"
        + 2 * f"  {'(us)':>7}  {'(GB/s)':>6}  {'(GB/s)':>6}  {'':>6}",
    ]
    for size, time_us in points:
        algbw = size / time_us / 1e3
        half = f"  {float_text(time_us, 7)}  {float_text(algbw, 6)}  {float_text(algbw * (n - 1) / n, 6)}"
        lines.append(
            f"{size:12d}  {size // n // 4:12d}  {'float':>8}  {'none':>6}  {-1:6d}{half}  {0:6d}"
            "      nan     nan     nan     N/A"
        )
    lines += ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 1 ", "#",
              "# Collective test concluded: alltoall_perf", "#", ""]  # fmt: skip
    return "\n".join(lines)
