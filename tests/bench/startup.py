"""How long people wait before anything happens: --help, and the dry run of ten thousand cases."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from commbench.units import format_size

TEN_THOUSAND = (
    "sweep quick --dry-run transport=gloo sizes.max=1G sizes.factor=2 dtype=fp32,fp16,bf16,int32,uint8 "
    "mode=isolated,pipelined cache=warm,cold env.A=0,1,2,3,4,5 algorithm=all"
)


def seconds(words: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "commbench", *words.split()], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    for name, words in (("commbench --help", "--help"), ("dry run of 10,080 cases", TEN_THOUSAND)):
        times = sorted(seconds(words) for _ in range(7))
        print(f"{name}: {times[0]:.3f} - {times[3]:.3f} - {times[-1]:.3f} s (least, median, most of 7)")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"largest process: {format_size(peak)}")
