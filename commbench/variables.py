"""What of the environment that was asked has really reached a rank, and what a library says that it has read.

`env.NAME=a,b` is a launch for each value; `unset` means without the variable.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from commbench.errors import EnvironmentProblem, UsageError

UNSET = "unset"
# What `commbench exec` and launches tell their ranks, as nobody could find it out afterwards.
BINDING, FABRIC = "COMMBENCH_BINDING", "COMMBENCH_FABRIC"
PROFILE = "COMMBENCH_PROFILE"  # the file's path
ALGORITHMS = "COMMBENCH_ALGORITHMS"  # files with algorithms that this user trusts: FILE.py:CLASS;FILE.py:CLASS
BACKEND = "COMMBENCH_BACKEND"  # what torch's process groups are wrapped for: profile, record
SCOPE = "COMMBENCH_SCOPE"  # the id of the scope in it that each rank has yet to start by: settings and binding
EXPLAIN = "COMMBENCH_EXPLAIN"  # 1: what went by the profile is told when a group ends
REDUCTIONS = "COMMBENCH_REDUCTIONS"  # 1: sums go by the profile too
RECORD, RECORD_SALT = "COMMBENCH_RECORD", "COMMBENCH_RECORD_SALT"  # the folder; set where hosts are left out
CONTROL = "COMMBENCH_CONTROL"  # nobody reads it: a tuning's default start once more, in launches of its own
# Of these a program that is started loads or runs what they name, or writes where they say. By kinds, as libraries
# get new ones all the time; what is caught too much, --allow-env lets pass.
_LOADING = re.compile(
    "|".join(
        (
            # The loader, the C library, shells, and what any program looks for by its folder.
            r"LD_.*|DYLD_.*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|NLSPATH|PATH|HOME|XDG_.*|SHELL|ENV|BASH_.*|BASHOPTS",
            r"SHELLOPTS|PS4|IFS|PROMPT_COMMAND|EDITOR|VISUAL|PAGER|BROWSER|GIT_.*|SSH_.*|COMMBENCH_ALGORITHMS",
            # Interpreters, and what Python's packages load or compile.
            r"PYTHON(?!HASHSEED$|UNBUFFERED$|FAULTHANDLER$).*|PERL.*|RUBY.*|NODE_.*|(_|JDK_)?JAVA_.*|CLASSPATH|LUA_.*",
            r"MPLBACKEND|MPLCONFIGDIR|TRITON_.*(DIR|PATH|HOME|BACKEND).*|TORCH\w*_(DIR|HOME|PATH|EXTENSIONS?)|CC|CXX|NVCC\w*",
            r"CUDA_(HOME|PATH|CACHE_PATH)|\w*INJECTION\w*|OMP_TOOL_LIBRARIES|MPI4PY_.*",
            # Plugins, modules and components of communication libraries, and files that set all of these.
            r"\w*PLUGINS?(_\w*)?|\w*PRELOAD\w*|\w*MODULES?_(DIR|PATH)S?|\w*_PROVIDER_PATH|\w*_LIB(RARY|RARIES|DIR|S)?(_\w*)?",
            r"\w*COMPONENT_PATH\w*|\w*_PARAM_FILES|\w*_(INSTALL_)?PREFIX|\w*_AGENT|NCCL_CONF_FILE|I_MPI_ROOT",
            r"(OMPI|OPAL|PMIX|PRTE)_\w*(PATH|DIR|BASE|EXEC)\w*|(I_MPI_)?HYDRA_\w*|I_MPI_\w*(EXEC|PATH)\w*|MPIEXEC_\w*",
            # Files that are written.
            r"\w*_(DUMP|DEBUG|LOG|OUTPUT|TRACE)_?(FILE|DIR|PATH)\w*|\w*LOGFILE",
        )
    ),
    re.IGNORECASE,
)
_TOLD = re.compile(r"\b(NCCL_\w+) set by environment to (.*?)\.?\s*$", re.MULTILINE)


def applied(environ: Mapping[str, str], asked: Mapping[str, str]) -> dict[str, str]:
    """`environ` with the variables of a launch."""
    values = {**environ, **asked}
    return {name: value for name, value in values.items() if asked.get(name) != UNSET}


def differs(name: str, value: str, environ: Mapping[str, str]) -> bool:
    """Whether a variable is not what was asked for, or is set where it should not be."""
    return environ.get(name) != (None if value == UNSET else value)


def loads_code(name: str) -> bool:
    """Return whether a program may load, run or overwrite what a variable of this name says."""
    return _LOADING.fullmatch(name) is not None


def refuse_code(asked: Mapping[str, str], source: str, allowed: Collection[str]) -> None:
    """Raise `UsageError` where `source`, which others may have written, sets variables that load code.

    Those that this process has already, with the same value, are no news; `allowed` are the user's own decision.
    """
    found = {name: value for name, value in asked.items() if loads_code(name) and differs(name, value, os.environ)}
    if refused := [name for name in found if name not in allowed]:
        name = refused[0]
        more = f", and {', '.join(refused[1:])}" if refused[1:] else ""
        raise UsageError(
            f"{source} sets {name}={found[name]}{more}: programs load code from there, or write there",
            hint="if you trust that: " + " ".join(f"--allow-env {one}" for one in refused),
        )


def check(asked: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Raises `EnvironmentProblem` where a rank has not got what the launch shall be about."""
    for name, value in asked.items():
        if differs(name, value, environ):
            have = environ.get(name)
            raise EnvironmentProblem(
                f"env.{name}={value} was asked, and this rank has {'none' if have is None else repr(have)}",
                hint="the launcher does not hand it on, or sets it itself: see what it exports to other hosts",
            )


def nccl_log(folder: Path, asked: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables with which NCCL writes down what it reads, where the launch is about some of its own.

    Nothing where somebody else has asked for a log of NCCL.
    """
    if not any(name.startswith("NCCL_") for name in asked) or "NCCL_DEBUG" in {**environ, **asked}:
        return {}
    return {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "ENV", "NCCL_DEBUG_FILE": str(folder / "nccl-%h-%p.txt")}


def nccl_told(folder: Path) -> dict[str, str] | None:
    """The variables that NCCL in this process says it has read, with what it made of them; None: nobody asked it."""
    if not os.environ.get("NCCL_DEBUG_FILE", "").startswith(f"{folder}/nccl-"):
        return None
    path = folder / f"nccl-{platform.node().split('.')[0]}-{os.getpid()}.txt"
    try:
        return dict(_TOLD.findall(path.read_text(errors="replace")))
    except OSError:
        return {}


def silence(asked: Mapping[str, str], told: Mapping[str, str]) -> str:
    """Say which of NCCL's variables it has said nothing of; "" if none."""
    names = [name for name, value in asked.items() if name.startswith("NCCL_") and value != UNSET and name not in told]
    if not names:
        return ""
    return (
        f"NCCL has not said that it reads {', '.join(names)}: misspelt, not known to this version, "
        "or not looked at in these cases"
    )
