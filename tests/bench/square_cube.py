"""SWARM's square-cube law (arXiv 2301.11913): from which width a slow link is hidden behind a stage's products.

A stage of L layers of width n makes 72 L n^2 operations for a token, forward and backward (12 n^2 weights, twice two
operations backward), and sends n values of w bytes in either direction. So products take 72 L n^2 / F, the link
n w / B, and what it takes of the products falls as 1 / n: the link is hidden from n = w F / (72 L B) on.

The second half measures both on an emulated pair of nodes, at two widths. (Two minutes.)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import torch

from commbench import payloads
from tests.conftest import environment

LINKS = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9}  # bytes a second
DEVICES = {"10 TFLOP/s": 1e13, "100 TFLOP/s": 1e14, "400 TFLOP/s": 4e14}
TOKENS, WIDTHS, TURNS = 4096, (32, 256), 3


def value_bytes(payload: str, width: int = 4096) -> float:
    """Return the bytes of a bf16 value on the wire."""
    found = payloads.get(payload)
    return 2.0 if found is None else found.row_bytes(width) / width


def hidden_from(flops: float, link: float, payload: str = payloads.NONE, layers: int = 1) -> float:
    """Return the width from which a link of so many bytes a second is hidden, in both directions at once."""
    return value_bytes(payload) * flops / (72 * layers * link)


def main() -> None:
    for device, flops in DEVICES.items():
        for link, rate in LINKS.items():
            widths = [hidden_from(flops, rate, payload) for payload in ("none", "int8")]
            print(f"| {device} | {link} | {widths[0]:.0f} | {widths[1]:.0f} |")
    shares: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(TURNS):
        for width in WIDTHS:
            products_us = _products_us(width)
            for payload, time_us in _exchanges(width).items():
                predicted_us = TOKENS * width * value_bytes(payload, width) / LINKS["100 Mbit/s"] * 1e6
                pair = time_us / products_us, predicted_us / products_us
                shares.setdefault((payload, width), []).append(pair)
    for (payload, width), found in sorted(shares.items()):
        measured, predicted = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"width {width}, payload={payload}: the link takes {measured:.2f} x the products, predicted {predicted:.2f}"
        )


def _exchanges(width: int) -> dict[str, float]:
    """Return microseconds in which two nodes send each other TOKENS rows, by payload."""
    words = ["fabric=emulated", "layout=2x1", "link=100mbit", "dtype=bf16", "payload=none,int8", "algorithm=direct",
             f"sizes.list={2 * TOKENS * width * 2}", "launches=2", "cap=1.5"]  # fmt: skip
    command = [sys.executable, "-m", "commbench", "sweep", "quick", *words, "--no-plots", "--format", "json", "-q"]
    text = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout
    rows = [row for line in text.splitlines() if "case_id" in (row := json.loads(line))]
    return {row["arguments"].get("payload", "none"): row["time_us"] for row in rows}


def _products_us(width: int) -> float:
    """Return microseconds of a layer's products forward and backward, on one thread."""
    torch.set_num_threads(1)
    x, weights = torch.randn(TOKENS, width), torch.randn(width, 12 * width)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        for _ in range(3):
            torch.mm(x, weights)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    main()
