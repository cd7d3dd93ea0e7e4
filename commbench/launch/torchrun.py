"""torchrun as a subprocess: for GPUs, and on request."""

from __future__ import annotations

import sys
from pathlib import Path

from commbench.launch.order import Order


def command(order_path: Path, order: Order) -> list[str]:
    # Standalone finds a free port; a benchmark must never restart silently.
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--max-restarts=0",
        "--monitor-interval=0.1",
        f"--nproc-per-node={order.outer.layout.ranks}",
        "-m",
        "commbench.worker",
        str(order_path),
    ]
