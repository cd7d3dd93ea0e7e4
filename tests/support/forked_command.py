"""A command line that is forked from this process: like one of its own, but for the seconds that its imports take.

It is a `Popen` whose child runs commbench, or torchrun with commbench's ranks, in place of the program that it would
become. Its command line is that of pytest: `tests.support.kill_and_resume.family` knows it by its folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from commbench.cli import _main
from tests.conftest import environment
from tests.support import forked_launcher


def start(*words: str, cwd: Path, **options: Any) -> subprocess.Popen[Any]:
    """`commbench WORDS`; `options` are those of `Popen`."""
    return _start(lambda: _main(list(words)), environment(), cwd=cwd, **options)


def run(*words: str, cwd: Path, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `tests.conftest.commbench`."""
    return _completed(start(*words, cwd=cwd, **_CAUGHT, **options), words, timeout)


def start_torchrun(ranks: int, *words: str, cwd: Path, **options: Any) -> subprocess.Popen[Any]:
    """`torchrun --nproc-per-node=RANKS -m commbench WORDS`; its ranks are forked too."""
    import torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler as handler
    from torch.distributed import run

    import moe_ref.training.rank  # noqa: F401 -- here, and not by every rank of a training

    def main() -> int:
        with mock.patch.object(handler, "Popen", _rank):
            run.main(["--standalone", f"--nproc-per-node={ranks}", "-m", "commbench", *words])
        return 0

    return _start(main, environment(), cwd=cwd, **options)


def torchrun(ranks: int, *words: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return _completed(start_torchrun(ranks, *words, cwd=cwd, **_CAUGHT), words, timeout)


_CAUGHT: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def _completed(
    process: subprocess.Popen[str], words: Sequence[str], timeout: float
) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _rank(args: Sequence[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    """What torchrun starts: `python -u -m commbench WORDS`."""
    words = list(args)[list(args).index("commbench") + 1 :]
    return _start(lambda: _main(words), env, **options)


def _start(main: Callable[[], int], env: Mapping[str, str], **options: Any) -> subprocess.Popen[Any]:
    sys.stdout.flush()
    sys.stderr.flush()
    return subprocess.Popen([sys.executable], preexec_fn=lambda: _become(main, env), **options)


def _become(main: Callable[[], int], env: Mapping[str, str]) -> NoReturn:
    """In the child, where descriptors 0, 1 and 2 and the folder are those that were asked for."""
    code = 1
    try:
        forked_launcher.let_go()  # also of the pipe that tells `Popen` that the child has begun
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        with forked_launcher.instead():
            code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            code = code or 120  # as Python ends whose reader has gone
        os._exit(code)
