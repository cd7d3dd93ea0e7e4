"""Bandwidth before and after: of a profile, of a tuning's folder, of two runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from commbench.cli import _main
from commbench.links import parse_link_rates
from commbench.plots import before_after, gains
from commbench.plots.before_after import figure
from commbench.profile import file as profile_file
from commbench.run_folder import RunFolder
from tests.support import fake_runs, profiles
from tests.support.figures import inside

FAST = dataclasses.replace(profiles.EVIDENCE, size_bytes=4096, default_us=100.0, ratio=2.0, low=1.8, high=2.2)
KEPT = dataclasses.replace(FAST, size_bytes=65536, ratio=0.9, low=0.85, high=0.95, verdict="not confirmed")


def lines_of(figure: Figure) -> dict[str, list[float]]:
    inside(figure)
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {label: [float(y) for y in line.get_ydata()] for label, line in zip(labels, lines, strict=True)}


def test_both_lines_are_of_the_evidence_and_the_title_concludes(tmp_path: Path) -> None:
    made = profiles.profile(
        profiles.choice("all_to_all", "bruck", 0, 8191, evidence=[FAST]),
        profiles.choice("all_to_all", "direct", 8192, None, evidence=[KEPT]),
        nodes=2, ranks_per_node=2,
    )  # fmt: skip
    drawn = before_after.of_profile(made, {})
    assert drawn is not None and drawn.get_suptitle() == "With the profile: 2.00x the bandwidth at 4 KiB"
    busbw = [4096 / 100e3 * 3 / 4, 65536 / 100e3 * 3 / 4]
    lines = lines_of(drawn)
    assert lines["default"] == pytest.approx(busbw)
    assert lines["with the profile"] == pytest.approx([2 * busbw[0], busbw[1]]), "what was not confirmed is not taken"
    assert before_after.of_profile(profiles.profile(profiles.choice("all_to_all", "direct", evidence=[])), {}) is None
    # Two nodes of two ranks: half of a rank's data leave its node, 2 x 2048 B and 2 x 32768 B each at 1 GB/s.
    bound = before_after.declared_bounds(made, parse_link_rates(["inter=1GBps"]))
    assert sorted(bound.values()) == pytest.approx([4.096, 65.536])
    with_bound = before_after.of_profile(made, bound)
    assert with_bound is not None
    assert lines_of(with_bound)["bound: what the links allow"] == pytest.approx([0.75, 0.75])


def two_runs(parent: Path, factor: float) -> list[Path]:
    cases = fake_runs.planned("algorithm=direct", "sizes.min=1K", "sizes.max=64K", "sizes.factor=8", "launches=6")
    paths = []
    for times in (1.0, factor):
        made = fake_runs.measured(cases, lambda case: times * (20 + case.size_bytes / 1e3), drift=0.01)  # noqa: B023
        run, rows = fake_runs.folder(parent, cases, made, samples=2)
        run.write_json("run.json", {**fake_runs.ABOUT, **fake_runs.META, "format_version": 6, "run_id": run.run_id})
        assert rows[0].bound_us
        paths.append(run.path)
    return paths


def test_two_runs_and_their_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from commbench.analysis import compare

    before, after = two_runs(tmp_path, 0.5)
    comparisons = compare.compare(compare.load(before), compare.load(after))
    drawn = before_after.of_runs(comparisons, compare.yardsticks(before, {}), "here")
    assert drawn is not None and drawn.get_suptitle().endswith("x the bandwidth from 1 KiB to 64 KiB")
    lines = lines_of(drawn)
    rows = sorted(RunFolder.open(before).rows().values(), key=lambda row: row.size_bytes)
    assert lines["direct, before"] == pytest.approx([row.busbw_gbps for row in rows])
    assert lines["bound: what the links allow"] == pytest.approx([row.bound_gbps for row in rows])
    assert lines["direct, after"] == pytest.approx([2 * y for y in lines["direct, before"]], rel=0.1)
    assert _main(["plot", str(before), str(after), "--out", str(tmp_path / "p")]) == 0
    assert list((tmp_path / "p").glob("compare-*-before-after.png"))
    capsys.readouterr()
    assert _main(["plot", str(before.parent)]) == 2, "the folder of --out"
    newest = max(path.name for path in (before, after))
    assert f"hint: give the newest run in it: {before.parent / newest}" in capsys.readouterr().err.replace("\n", " ")


def test_plot_takes_what_tune_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = two_runs(tmp_path, 1.0)[:1]
    evidence = dataclasses.replace(FAST, size_bytes=1024, run=before.name)
    made = profiles.profile(profiles.choice("all_to_all", "bruck", evidence=[evidence]), nodes=2, ranks_per_node=2)
    profile_file.save(made, tmp_path / "profile.json")
    drawn = []
    monkeypatch.setattr(before_after, "figure", lambda *args: drawn.append(figure(*args)) or drawn[-1])
    for path in (tmp_path, tmp_path / "profile.json"):
        assert _main(["plot", str(path), "--out", str(tmp_path / "p")]) == 0
        said = capsys.readouterr().err
        assert "bandwidth.png" in said and "gains.png" in said
        assert len(lines_of(drawn[-1])) == 3, "the bound is that of the stage's run"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"format": "something"}))
    assert _main(["plot", str(other)]) == 2


def test_gains_conclude_and_nothing_lies_over_anything() -> None:
    sizes = [1 << power for power in range(10, 26)]
    found = [dataclasses.replace(FAST, size_bytes=size) for size in sizes]
    for evidence in (found, [*found[:1], KEPT]):
        made = profiles.profile(profiles.choice("all_to_all", "bruck", evidence=evidence), nodes=2, ranks_per_node=2)
        drawn = gains.gains(made)
        assert drawn is not None
        inside(drawn)
        count = sum(one.confirmed for one in evidence)
        assert (
            drawn.get_suptitle() == f"The profile is 2.00x as fast as the default, in {count} of {len(evidence)} cases"
        )
        bandwidth = before_after.of_profile(made, {})
        assert bandwidth is not None
        inside(bandwidth)
