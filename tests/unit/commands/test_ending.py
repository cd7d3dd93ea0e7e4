"""How commands end: an interrupt is one, wherever it comes."""

from __future__ import annotations

import signal
import sys
import time
from typing import NoReturn

import click
import pytest

from commbench.commands import ending


def ended(command: click.Command, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    hook, handler = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = ending.run(command, [])
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)
    return code, capsys.readouterr().err.split("\n")[-2:-1]


def test_an_interrupt_in_a_destructor_is_not_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    @click.command()
    def command() -> int:
        Interrupted()
        time.sleep(5)
        return 0

    assert ended(command, capsys) == (130, ["error: interrupted"])


def test_an_interrupt_that_became_another_error_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> NoReturn:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("half done")

    command = click.command("command")(failing)
    assert ended(command, capsys) == (130, ["error: interrupted"])


def test_an_error_of_ours_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def command() -> int:
        raise AttributeError("a mistake")

    with pytest.raises(AttributeError, match="a mistake"):
        ended(command, capsys)
