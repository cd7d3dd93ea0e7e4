"""Which launcher a sweep takes where nobody says it, and what it says of nodes that will be none."""

from __future__ import annotations

import pytest

from commbench.console import Console
from commbench.launch import slurm
from commbench.sweep import prepare
from commbench.sweep.prepare import SweepRequest


@pytest.mark.parametrize(
    "allocated, words, launcher",
    [
        ("4", "transport=gloo nodes=4", "slurm"),
        ("4", "transport=gloo layout=1x4,2x2", "slurm"),
        ("4", "transport=gloo nodes=1", "local"),
        ("1", "transport=gloo nodes=4", "local"),
        ("", "transport=gloo nodes=4", "local"),
        ("4", "transport=gloo nodes=4 fabric=emulated", "local"),
        ("4", "transport=scripted nodes=4", "local"),
    ],
)
def test_an_allocation_of_several_nodes_is_used(
    allocated: str, words: str, launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    for name, value in (("SLURM_JOB_ID", allocated and "7"), ("SLURM_JOB_NUM_NODES", allocated)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    _, configs = prepare.configure(["quick", *words.split()])
    launchers, configs = prepare.choose_launchers(SweepRequest(), configs, Console())
    assert set(launchers.values()) == {launcher}
    prepare.note_declared(prepare.expand(configs), launchers, Console())
    told = "nodes are declared on one machine: nothing here is about your network" in capsys.readouterr().err
    assert told == (launcher == "local" and "nodes=4" in words and "emulated" not in words)
    chosen, _ = prepare.choose_launchers(SweepRequest(launcher="local"), configs, Console())
    assert set(chosen.values()) == {"local"}, "what the user says holds"
