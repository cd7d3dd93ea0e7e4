"""One launcher as a child process: started so that it cannot outlive us, watched, and ended with all its ranks."""

from __future__ import annotations

import contextlib
import os
import site
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

import commbench
from commbench.processes.held import held
from commbench.processes.orphans import die_with_parent


class Process:
    """Runs `command` in a session of its own (so that Ctrl-C reaches only the parent), its output in `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with open(log, "ab") as output:
            try:
                with held():
                    self._process = subprocess.Popen(
                        command,
                        env=dict(environment),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                        preexec_fn=die_with_parent,  # only calls prctl, so it is safe between fork and exec
                    )
            except KeyboardInterrupt:
                self.kill()
                raise

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the launcher and every process below it, and wait until they are gone."""
        if self.ended():  # its pid may belong to somebody else by now
            return
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(self._process.pid)
            family = [launcher, *launcher.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=10)


def rank_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the parent's environment plus `extra`, never a clean one.

    OMP_NUM_THREADS is set to 1 where it is unset, as torchrun does, so that all launchers give ranks the same number
    of threads.
    """
    root = Path(commbench.__file__).resolve().parent.parent
    path = os.environ.get("PYTHONPATH", "")
    if str(root) not in site.getsitepackages():  # a checkout that is not installed
        path = os.pathsep.join(filter(None, [str(root), str(root / "kernels"), path]))
    # Ranks import what the sweep imports: no numpy.py that happens to lie in the current folder.
    return {"OMP_NUM_THREADS": "1", **os.environ, **extra, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
