"""How every command ends: errors in words, exit codes, and what becomes of output that nobody takes."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TypeGuard

import click

from commbench.commands import nccl_tests
from commbench.errors import EXIT_INTERRUPTED, CommbenchError
from commbench.processes import streams

_MOMENT_S = 0.01
_MOST_LETTERS = 2000  # of an error: what was typed may be longer
_KEPT = ("sweep", "tune", "train")  # commands that keep in a folder what they print
_PLANS = {"--dry-run", "--show-config"}  # with which they keep nothing


def run(cli: click.Command, arguments: list[str]) -> int:
    """Run a command to its exit code: every error is one `error:` line and one `hint:` line."""
    streams.guard()
    sys.unraisablehook = _unraisable
    code = _run(cli, arguments)
    error = streams.ended("stdout")
    if error is None or streams.nobody_reads(error):
        return code
    why = f"stdout: {error.strerror}"
    if arguments[0] in _KEPT and not _PLANS & {*arguments}:
        _say(f"{why}; what it lacks is in the run folder")
        return code
    return code or _report(f"{why}, so what was printed is not whole", "make room, or print to another place", 2)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Interrupt once more where Python drops an interrupt, as it came in a destructor or beside a fork."""
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            # A moment later, as here it would be dropped again.
            again = threading.Timer(_MOMENT_S, signal.pthread_kill, (threading.main_thread().ident, number))
            again.daemon = True
            again.start()
            return


def _example(context: click.Context) -> str:
    """Return the first command line that the help of a command gives as an example, or one with the run that it takes.

    "" where neither is known.
    """
    lines = map(str.strip, (context.command.help or "").splitlines())
    takes_runs = any(item.metavar == "RUN..." for item in context.command.params)
    shortest = f"{context.command_path} results/latest" if takes_runs else ""
    return next((line for line in lines if line.startswith(f"{context.command_path} ")), shortest)


def _run(cli: click.Command, arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="commbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except CommbenchError as error:
        return _report(str(error), error.hint, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "commbench"
        hint = nccl_tests.instead_of(error.option_name) if _asks_for_flags(error) else ""
        if isinstance(error, click.MissingParameter) and context and (example := _example(context)):
            hint = f"{example}; see {path} --help"
        return _report(" ".join(error.format_message().split()), hint or f"see {path} --help", 2)
    except (KeyboardInterrupt, click.Abort):
        return _report("interrupted", "", EXIT_INTERRUPTED)
    except OSError as error:
        if _is_interrupt(error):
            return _report("interrupted", "", EXIT_INTERRUPTED)
        where = f"{error.filename}: " if error.filename else ""
        return _report(f"{where}{error.strerror or error}", "is the disk full, read-only, or gone?", 2)
    except Exception as error:
        if not _is_interrupt(error):
            raise
        return _report("interrupted", "", EXIT_INTERRUPTED)


def _asks_for_flags(error: click.ClickException) -> TypeGuard[click.NoSuchOption]:
    """Return whether a command that has flags of nccl-tests was given one that it has not."""
    context = getattr(error, "ctx", None)
    return isinstance(error, click.NoSuchOption) and any(
        "--min-bytes" in param.opts for param in (context.command.params if context else ())
    )


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an interrupt became another error: what it came upon has failed to put itself in order."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _say(text: str) -> None:
    from commbench.console import stderr_console

    stderr_console().print(text)


def _report(message: str, hint: str, code: int) -> int:
    from commbench.console import print_error

    if len(message) > _MOST_LETTERS:
        message = f"{message[:_MOST_LETTERS]}.. ({len(message)} letters)"
    print_error(message, hint)
    return code
