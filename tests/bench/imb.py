"""Our pipelined mean against t_avg of Intel's IMB-MPI1, all-to-all on 2 ranks, Intel MPI on both sides, in turn.

Both come from the wheel `impi-rt`, in an environment of its own, as only one MPI fits into one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

import numpy as np

from commbench.units import format_size
from tests.bench.bare import ratio
from tests.conftest import REPOSITORY, environment, rows_of

HOME = REPOSITORY / ".venv-intel"
ROUNDS = 10
PER_PEER = [16 << 2 * k for k in range(10)]  # bytes, 16 B to 4 MiB; IMB's size is that of one message


def install() -> None:
    if (HOME / "bin" / "IMB-MPI1").exists():
        return
    print(f"setting up {HOME.name} (once)", flush=True)
    venv.create(HOME, with_pip=True)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [name for name in project["dependencies"] if not name.startswith("torch")]
    pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([*pip, *wanted, "mpi4py", "impi-rt"], check=True)


def imb(sizes: Path) -> dict[int, float]:
    """t_avg in microseconds by bytes per peer."""
    command = [str(HOME / "bin" / "mpiexec"), "-genv", "I_MPI_PIN", "0", "-n", "2"]
    command += [str(HOME / "bin" / "IMB-MPI1"), "Alltoall", "-npmin", "2", "-msglen", str(sizes)]
    paths = {"LD_LIBRARY_PATH": str(HOME / "lib"), "PATH": f"{HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=True, timeout=300)
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    return {int(words[0]): float(words[4]) for words in lines}


def ours(folder: Path) -> dict[int, float]:
    """`time_us_mean` by bytes per peer, of one launch."""
    command = [str(HOME / "bin" / "python"), "-m", "commbench", "sweep", "quick", "transport=mpi", "algorithm=direct"]
    command += ["mode=pipelined", "nodes=1", "ranks_per_node=2", "launches=1", "cap=0.5", "--no-plots", "--quiet"]
    command += ["-b", str(2 * PER_PEER[0]), "-e", str(2 * PER_PEER[-1]), "-f", "4", "--format", "json"]
    done = subprocess.run(
        command, env=environment(), cwd=folder, capture_output=True, text=True, check=True, timeout=300
    )
    rows = rows_of(done)
    return {row["size_bytes"] // 2: row["time_us_mean"] for row in rows}


def limit(per_peer: int, theirs_us: float) -> float | None:
    """The largest difference in microseconds that we allow ourselves; none in between, where caches decide."""
    if per_peer <= 64 << 10:
        return max(1.5, 0.15 * theirs_us)
    return 0.10 * theirs_us if per_peer >= 512 << 10 else None


def main() -> None:
    try:
        install()
    except subprocess.CalledProcessError as error:
        print(f"no environment with Intel MPI: {error}", file=sys.stderr)
        return
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in PER_PEER}
    with tempfile.TemporaryDirectory() as folder:
        sizes = Path(folder) / "sizes"
        sizes.write_text("".join(f"{size}\n" for size in PER_PEER))
        for number in range(ROUNDS):
            arms = [lambda: imb(sizes), lambda: ours(Path(folder))]
            theirs, mine = (arm() for arm in arms) if number % 2 else reversed([arm() for arm in reversed(arms)])
            for size in PER_PEER:
                times[size].append((mine[size], theirs[size]))
    print(f"2 ranks, {ROUNDS} launches of each in turn, us per call: median over launches")
    heads = ("per peer", "IMB t_avg", "ours", "difference", "allowed", "", "ours/IMB", "95 % interval")
    print(" ".join(f"{head:>13}" for head in heads))
    for size, pairs in times.items():
        mine, theirs = (float(np.median([pair[side] for pair in pairs])) for side in (0, 1))
        allowed = limit(size, theirs)
        centre, low, high = ratio([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        verdict = "-" if allowed is None else "within" if mine - theirs <= allowed else "ABOVE"
        cells = [format_size(size), f"{theirs:.2f}", f"{mine:.2f}", f"{mine - theirs:+.2f}"]
        cells += ["-" if allowed is None else f"{allowed:.2f}", verdict, f"{centre:.3f}", f"{low:.3f}-{high:.3f}"]
        print(" ".join(f"{cell:>13}" for cell in cells), flush=True)
