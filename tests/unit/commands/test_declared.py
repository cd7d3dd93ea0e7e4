"""A node that is no machine of its own is called declared wherever it is shown, and one that is one never."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from commbench.analysis.stragglers.examine import Examined
from commbench.analysis.summary import Samples
from commbench.cli import _main
from commbench.export import TABLE, export
from commbench.export.source import ExportSource
from commbench.layout import Layout
from commbench.output import stragglers
from commbench.output.writers import writer as writer_of
from commbench.plots.crossover import crossover
from commbench.plots.curves import curves
from commbench.plots.traffic import traffic
from commbench.profile.scope import Here, differences
from commbench.records import FORMAT_VERSION, Case, Fabric, network_note
from commbench.run_folder import RunFolder
from commbench.train.results import ranks_text
from tests.support import profiles
from tests.support.fake_runs import META, folder, frame, measured, planned, rows_of

WORDS = ("nodes=2", "ranks_per_node=2", "algorithm=direct,2d_intra_first", "launches=6", "sizes.min=1K",
         "sizes.max=64K", "sizes.factor=4")  # fmt: skip
NOTE = "nodes are declared on one machine: nothing here is about your network"


@pytest.mark.parametrize(
    "nodes, machines, how, between",
    [
        (1, 1, {}, "none"),
        (4, 4, {}, "real"),
        (4, 1, {}, "declared"),
        (4, 2, {}, "declared"),
        (4, 1, {"virtual": True}, "virtual"),
        (4, 4, {"virtual": True}, "real"),
        (4, 1, {"emulated": True}, "emulated"),
    ],
)
def test_machines_decide_what_is_between_nodes(nodes: int, machines: int, how: dict[str, bool], between: str) -> None:
    found = Fabric.between(nodes, machines, **how)
    assert found == between
    assert bool(network_note(found)) == (between in ("declared", "virtual"))


def made(parent: Path, fabric: Fabric) -> Path:
    def rule(case: Case) -> float:
        return 20 + case.size_bytes / 1000

    cases = planned(*WORDS)
    measurements = [replace(m, fabric=fabric, links={}) for m in measured(cases, rule, noise=0.01)]
    run, _ = folder(parent, cases, measurements, 20)
    about = {**META, "run_id": run.run_id, "joined": "", "format_version": FORMAT_VERSION, "launchers": {}}
    about |= {"plan_digest": "", "timeout_s": 1, "seed": 0}
    (run.path / "run.json").write_text(json.dumps(about))
    return run.path


@pytest.mark.parametrize("fabric", [Fabric.DECLARED, Fabric.REAL])
def test_every_verdict_says_it(fabric: Fabric, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(made(tmp_path, fabric))
    for command in (["compare", run, run], ["model", run]):
        _main(command)
        assert (NOTE in capsys.readouterr().out) == (fabric == Fabric.DECLARED), command
        _main([*command, "--format", "json"])
        assert f'"fabric": "{fabric}"' in capsys.readouterr().out, command
    part = Examined(
        row=None, what="", launches=6, size_bytes=None, layout=Layout(2, 2), tests=4, stragglers=[], fabric=fabric
    )
    assert (NOTE in stragglers.text([part], [], 1.3)) == (fabric == Fabric.DECLARED)
    assert stragglers.as_json([part], [], 1.3)["looked_at"][0]["fabric"] == fabric
    other = str(made(tmp_path / "b", Fabric.REAL))
    assert _main(["compare", run, other]) == (2 if fabric == Fabric.DECLARED else 0)
    assert ("the network was declared, is real" in capsys.readouterr().err) == (fabric == Fabric.DECLARED)


@pytest.mark.parametrize("fabric", [Fabric.DECLARED, Fabric.REAL])
def test_tables_and_figures_say_it(fabric: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    cases = planned(*WORDS)
    measurements = [replace(m, fabric=fabric) for m in measured(cases, lambda case: 20 + case.size_bytes / 1000)]
    rows = frame(cases, measurements)
    for draw in (curves, crossover, traffic):
        (figure,) = draw(rows, META).values()
        said = " ".join([figure.get_suptitle(), *(text.get_text() for text in figure.texts)]).replace("\n", " ")
        assert (NOTE in said) == (fabric == Fabric.DECLARED), draw
    finished = rows_of(cases, measurements, Samples(RunFolder(Path("/nowhere"))))
    for name, words in (("table", NOTE), ("nccl-tests", "declared on one machine"), ("json", '"fabric":"declared"')):
        writer = writer_of(name, "")
        for row in finished:
            writer.row(row)
        writer.end(finished, META, {})
        assert (words in capsys.readouterr().out) == (fabric == Fabric.DECLARED), name


@pytest.mark.parametrize("fabric", ["declared", ""])
def test_profiles_exports_and_trainings_say_it(fabric: str, tmp_path: Path) -> None:
    profile = profiles.profile(profiles.choice("all_to_all", "direct"), nodes=2, ranks_per_node=2, fabric=fabric)
    assert ("declared on one machine" in str(profile.scopes[0])) == bool(fabric)
    for name in TABLE:
        made = export(name, ExportSource(profile, tmp_path / "p.json"))
        said = made.text + " ".join(made.notes)
        assert ("declared on one machine" in said) == bool(fabric) or name == "json", name
    config = {"nodes": 2, "ranks_per_node": 2, "transport": "gloo", "fabric": "real"}
    assert ("declared on one machine" in ranks_text(config, {"fabric": fabric})) == bool(fabric)


def test_what_was_tuned_on_declared_nodes_is_not_for_a_network() -> None:
    scope = profiles.profile(nodes=2, ranks_per_node=2, fabric="declared").scopes[0]
    here = Here(transport="gloo", nodes=2, ranks_per_node=2, between=Fabric.REAL)
    assert differences(scope, here) == ["fabric: the profile is for declared on one machine, here is a real one"]
    assert not differences(replace(scope, fabric=""), replace(here, between=Fabric.DECLARED)), "the reverse is"
