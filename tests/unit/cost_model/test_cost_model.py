"""Costs that were planted are found again, and winners are named that nobody measured."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench import algorithms, collectives, cost_model
from commbench.commands import model as command
from commbench.cost_model import Model, Observation, loads
from commbench.cost_model.forms import Form
from commbench.cost_model.observe import setting as setting_of
from commbench.emulated import Emulated
from commbench.errors import CorruptFile, UsageError
from commbench.layout import Layout
from commbench.output import cost_table
from commbench.records import Case, Status
from commbench.transports.scripted.mesh import thread_meshes
from commbench.transports.scripted.transport import Scripted
from tests.conftest import in_threads
from tests.support import fake_runs

ALPHA_US = {"intra": 8.0, "inter": 40.0}
GBPS = {"intra": 8.0, "inter": 1.0}
NOISE = {"noise": 0.02, "jitter_us": 0.2, "launch_noise": 0.03}
LAYOUTS = ("2x2", "2x4", "4x2")
EVERY = "algorithm=direct,pairwise,bruck,2d_intra_first,2d_inter_first,2d_pipelined"


def learned_from(*words: str) -> list[Case]:
    """Direct exchanges and pairs."""
    return fake_runs.planned(
        *words, "collective=all_to_all,pairs", "algorithm=direct", "round=all", "direction=there,both"
    )


def scripted(cases: Sequence[Case], launches: int = 6, **script: Any) -> list[Observation]:
    """What the scripted transport says of `cases`: the algorithms really run, on a virtual clock."""
    script = {"alpha_us": ALPHA_US, "gbps": GBPS, **NOISE, **script}
    times: dict[str, list[float]] = {}
    for shape in dict.fromkeys(case.setup.layout for case in cases):
        mine = [case for case in cases if case.setup.layout == shape]
        for launch in range(launches):
            for case, took_us in zip(mine, _launch(mine, shape, launch, script), strict=True):
                times.setdefault(case.case_id, []).append(took_us)
    return [Observation(case=case, launches_us=tuple(times[case.case_id])) for case in cases]


def _launch(cases: Sequence[Case], layout: Layout, launch: int, script: dict[str, Any]) -> list[float]:
    meshes = thread_meshes(layout.ranks)

    def body(rank: int) -> list[float]:
        transport = Scripted(
            {"script": json.dumps(script), "layout": (layout.nodes, layout.ranks_per_node), "launch": launch}
        )
        transport.attach(meshes[rank])
        return [_took_us(transport, case, rank) for case in cases]

    return [max(took) for took in zip(*in_threads(layout.ranks, body), strict=True)]


def _took_us(transport: Scripted, case: Case, rank: int) -> float:
    spec, collective = case.spec, collectives.get(case.collective)
    bound = algorithms.get(case.collective, case.algorithm).prepare(transport.world, spec)
    inp, out = (np.zeros(size(spec, rank), np.uint8) for size in (collective.input_bytes, collective.output_bytes))
    samples = []
    for _ in range(3):
        transport.barrier()
        began = transport.now_us
        bound.start(out, inp).wait()
        samples.append(transport.now_us - began)
    return float(np.median(samples))


def by_rule(cases: Sequence[Case], form: Form, costs: dict[str, float], noise: float = 0.0) -> list[Observation]:
    """Times that a form gives exactly, with noise on top."""
    rng = np.random.default_rng(5)
    values = np.array([[costs.get(name, 0.0) for name in form.costs]])
    found = []
    for case in cases:
        moves = loads.of_case(case)
        assert moves is not None
        time_us = float(form.time_us(values, loads.batch([moves]))[0, 0])
        found.append(Observation(case=case, launches_us=tuple(time_us * np.exp(rng.normal(0, noise, 6)))))
    return found


@pytest.fixture(scope="module")
def learned() -> tuple[Model, list[Observation]]:
    sizes = ("sizes.min=1K", "sizes.max=512K", "sizes.factor=8")
    seen = scripted(learned_from(f"layout={','.join(LAYOUTS)}", *sizes), launches=4)
    return cost_model.fit(seen), seen


def test_planted_costs_are_found_again(learned: tuple[Model, list[Observation]]) -> None:
    fitted, seen = learned
    (setting,) = fitted.settings.values()
    truth = {
        "alpha_intra_us": ALPHA_US["intra"],
        "alpha_inter_us": ALPHA_US["inter"],
        "beta_intra_us_per_kib": 1.024 / GBPS["intra"],
        "beta_inter_us_per_kib": 1.024 / GBPS["inter"],
    }
    assert setting.form.links == "serial"  # as the scripted transport is made
    # Noise of 2 % makes the slowest of several ranks some percent slower than what was planted.
    for name, planted in truth.items():
        assert setting.costs[name] == pytest.approx(planted, rel=0.08), name
        low, high = setting.intervals[name]
        assert low <= setting.costs[name] <= high and high / low < 1.5, name
    assert fitted.r2 > 0.995
    for scale in ("size", "layout"):
        assert setting.left_out[scale] and max(setting.left_out[scale].values()) < 0.1
    assert setting.observations == len(seen) > setting.points


def test_winners_are_named_that_were_never_measured(learned: tuple[Model, list[Observation]]) -> None:
    fitted, _ = learned
    sizes = ("sizes.min=2K", "sizes.max=2M", "sizes.factor=16")
    unseen = scripted(
        fake_runs.planned(f"layout={','.join(LAYOUTS)}", "collective=all_to_all", EVERY, *sizes), launches=2
    )
    cells: dict[tuple[str, int], list[Observation]] = {}
    for item in unseen:
        cells.setdefault((str(item.case.setup.layout), item.case.size_bytes), []).append(item)
    winners = set()
    for where, members in cells.items():
        times = {item.case.label: float(np.median(item.launches_us)) for item in members}
        says = {item.case.label: prediction_us(fitted, item.case) for item in members}
        named = min(says, key=lambda name: says[name])
        assert times[named] <= 1.05 * min(times.values()), (where, times, says)
        winners.add(named)
    assert len(winners) > 1  # there is a choice
    inside = []
    for item in unseen:
        found = fitted.predict(item.case)
        assert found is not None
        assert found.low_us <= found.time_us <= found.high_us
        inside.append(found.low_us * 0.95 <= np.median(item.launches_us) <= found.high_us * 1.05)
    assert np.mean(inside) > 0.9


def prediction_us(fitted: Model, case: Case) -> float:
    found = fitted.predict(case)
    assert found is not None
    return found.time_us


EMULATED = ("transport=gloo", "fabric=emulated", "link=1gbit", "message_overhead=30000")
SHARED = {
    "step_us": 300.0,
    "alpha_intra_us": 20.0,
    "beta_intra_us_per_kib": 0.5,
    "alpha_inter_us": 250.0,
    "beta_inter_us_per_kib": 9.0,
    "cpu_rank_us": 25.0,
    "cpu_message_us": 15.0,
    "cpu_us_per_kib": 0.3,
    "burst_us": 700.0,
}


def test_what_ranks_share_is_found_again_and_names_winners() -> None:
    """A node's link, the processors of one machine, and a link's burst, from direct and pairs alone."""
    truth = Form("node", "machine", math.inf, burst=True)
    layouts = "layout=2x4,4x4,2x8"
    sizes = ("sizes.min=1K", "sizes.max=1M", "sizes.factor=4")
    fitted = cost_model.fit(by_rule(learned_from(*EMULATED, layouts, *sizes), truth, SHARED, noise=0.03))
    (setting,) = fitted.settings.values()
    assert setting.form.links == "node" and setting.form.cpu == "machine"
    for name in ("alpha_inter_us", "beta_inter_us_per_kib"):
        assert setting.costs[name] == pytest.approx(SHARED[name], rel=0.05), name
    assert fitted.r2 > 0.99
    unseen = by_rule(fake_runs.planned(*EMULATED, layouts, "collective=all_to_all", EVERY, *sizes), truth, SHARED)
    errors = [prediction_us(fitted, item.case) / item.launches_us[0] - 1 for item in unseen]
    assert np.median(np.abs(errors)) < 0.05 and np.max(np.abs(errors)) < 0.3


def test_the_bottleneck_is_the_busiest_owner() -> None:
    """By hand: 2 nodes x 2 ranks exchange blocks of 1 KiB; a rank sends 1 inside and 2 outside, a node 4 outside."""
    (case,) = fake_runs.planned(
        "layout=2x2", "collective=all_to_all", "algorithm=direct", "sizes.min=4K", "sizes.max=4K"
    ) or [None]
    assert case is not None
    assert took_us(Form("serial"), case, alpha_intra_us=1, alpha_inter_us=10) == 21
    assert took_us(Form("rank"), case, alpha_intra_us=1, alpha_inter_us=10) == 20
    assert took_us(Form("node"), case, alpha_intra_us=1, alpha_inter_us=10) == 40
    assert took_us(Form("node"), case, step_us=5, beta_inter_us_per_kib=2) == 13
    assert took_us(Form("node", "machine"), case, cpu_message_us=3, alpha_inter_us=10) == 40
    assert took_us(Form("node", "machine", 1.0), case, cpu_message_us=3, alpha_inter_us=10) == 76
    assert took_us(Form("node", "node"), case, cpu_rank_us=7, cpu_us_per_kib=1) == 20
    assert took_us(Form("node", burst=True), case, alpha_inter_us=10, burst_us=15) == 40  # no rest before a call
    assert took_us(Form("node", burst=True), case, step_us=5, alpha_inter_us=10, burst_us=15) == 40
    assert took_us(Form("node", knee_kib=3), case, beta_inter_us_per_kib=2, volume_inter_us_per_kib=5) == 13


def test_answers_take_the_link_the_other_way() -> None:
    """From node 0 to node 1: the answers leave node 1, where nothing else does; sent both ways, they add up."""
    words = ("layout=2x1", "collective=pairs", "algorithm=direct", "sizes.min=4K", "sizes.max=4K")
    (there,), (both,) = fake_runs.planned(*words, "direction=there"), fake_runs.planned(*words, "direction=both")
    form = Form("node", replies=True)
    costs = {"alpha_inter_us": 10.0, "reply_inter_us": 4.0, "reply_inter_us_per_kib": 2.0}
    assert took_us(form, there, **costs) == 12
    assert took_us(form, both, **costs) == 22
    assert took_us(Form("node"), both, alpha_inter_us=10) == 10


def test_what_ranks_begin_apart_is_paid_once() -> None:
    """It is measured, so that it is not taken for what each step costs."""
    sizes = ("sizes.min=1K", "sizes.max=64K", "sizes.factor=4")
    costs = {"step_us": 50.0, "alpha_intra_us": 20.0, "beta_intra_us_per_kib": 1.0}
    seen = by_rule(learned_from("layout=1x4,1x8", *sizes), Form("serial"), costs, noise=0.01)
    later = [
        dataclasses.replace(item, launches_us=tuple(us + 0.5 * skew for us in item.launches_us), skew_us=skew)
        for item in seen
        for skew in [100.0 * item.case.setup.ranks_per_node]
    ]
    fitted = cost_model.fit(later)
    (setting,) = fitted.settings.values()
    assert setting.costs["step_us"] == pytest.approx(50, rel=0.25)
    (case,) = fake_runs.planned(
        "layout=1x6", "collective=all_to_all", "algorithm=pairwise", "sizes.min=6K", "sizes.max=6K"
    )
    assert prediction_us(fitted, case) == pytest.approx(300 + 5 * (50 + 20 + 1), rel=0.15)
    (blind,) = cost_model.fit([dataclasses.replace(item, skew_us=None) for item in later]).settings.values()
    assert blind.costs["step_us"] > 100 or blind.costs.get("cpu_rank_us", 0) > 10


def test_steps_follow_each_other_and_what_flies_together_shares() -> None:
    both = {"alpha_intra_us": 1.0, "beta_intra_us_per_kib": 4.0, "alpha_inter_us": 1.0, "beta_inter_us_per_kib": 4.0}
    whole = fake_runs.planned(
        "layout=2x2", "collective=all_to_all", "algorithm=2d_intra_first", "sizes.min=64K", "sizes.max=64K"
    )[0]
    assert took_us(Form("node"), whole, step_us=3, **both) == pytest.approx(3 + 1 + 4 * 32 + 3 + 2 + 4 * 64)
    (cut,) = fake_runs.planned("layout=2x2", "collective=all_to_all", "algorithm=2d_pipelined", "chunks=4",
                          "sizes.min=64K", "sizes.max=64K")  # fmt: skip
    # The first piece inside, then all pieces between nodes, beside which the others are inside.
    assert took_us(Form("node"), cut, **both) == pytest.approx((1 + 4 * 8) + 4 * (2 + 4 * 16))
    # Where one rank serves both, nothing runs beside anything.
    assert took_us(Form("serial"), cut, **both) == pytest.approx(4 * (1 + 4 * 8) + 4 * (1 + 4 * 8))


def test_groups_at_work_together_share_their_node() -> None:
    words = ("layout=2x4", "collective=all_to_all", "algorithm=direct", "sizes.min=8K", "sizes.max=8K")
    (whole,), (rails,) = fake_runs.planned(*words), fake_runs.planned(*words, "groups=rails")
    assert took_us(Form("node"), rails, alpha_inter_us=1) == 4  # each of 4 rails sends one message out
    assert took_us(Form("node"), whole, alpha_inter_us=1) == 16
    assert took_us(Form("rank", "machine"), rails, cpu_message_us=1, alpha_inter_us=1) == 8


def took_us(form: Form, case: Case, **costs: float) -> float:
    (item,) = by_rule([case], form, costs)
    return item.launches_us[0]


def test_nothing_is_said_of_what_is_not_known(learned: tuple[Model, list[Observation]]) -> None:
    fitted, seen = learned
    assert (
        fitted.predict(fake_runs.planned("collective=all_gather", "algorithm=direct")[0]) is None
    )  # the library's way
    other = dataclasses.replace(seen[0].case, setup=dataclasses.replace(seen[0].case.setup, transport="mpi"))
    assert fitted.predict(other) is None
    assert fitted.predict(dataclasses.replace(seen[0].case, buffers="registered")) is None
    costs = {"alpha_intra_us": 5.0, "beta_intra_us_per_kib": 1.0, "step_us": 2.0}
    inside = cost_model.fit(by_rule(learned_from("layout=1x4", "sizes.min=1K", "sizes.max=1M"), Form("serial"), costs))
    assert inside.predict(fake_runs.planned("layout=1x8", "collective=all_to_all")[0]) is not None
    assert inside.predict(fake_runs.planned("layout=2x4", "collective=all_to_all")[0]) is None


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (("layout=2x8", "sizes.min=64K", "sizes.max=64K"), ""),
        (("layout=2x8", "sizes.min=1M", "sizes.max=1M"), ""),
        (("layout=2x8", "sizes.min=4M", "sizes.max=4M"), "4 MiB, measured up to 512 KiB"),
        (("layout=4x8", "sizes.min=64K", "sizes.max=64K"), "32 ranks, measured up to 8"),
    ],
)
def test_beyond_twice_what_was_measured_there_is_a_warning(
    learned: tuple[Model, list[Observation]], words: tuple[str, ...], warning: str
) -> None:
    found = learned[0].predict(fake_runs.planned("collective=all_to_all", "algorithm=pairwise", *words)[0])
    assert found is not None
    assert (warning in found.warning) if warning else not found.warning


def test_too_little_is_an_error_that_says_what_to_measure(learned: tuple[Model, list[Observation]]) -> None:
    _, seen = learned
    for few in ([], seen[:1], [item for item in seen if item.case.size_bytes == 1024]):
        with pytest.raises(UsageError, match="too few observations") as caught:
            cost_model.fit(few)
        assert "pairs" in caught.value.hint
    silent = [dataclasses.replace(seen[0], case=fake_runs.planned("collective=all_gather", "algorithm=direct")[0])]
    with pytest.raises(UsageError, match="nobody knows what moves"):
        cost_model.fit(silent)


def test_few_messages_on_an_emulated_fabric_are_fitted_or_refused_in_words() -> None:
    """Its form has more costs than others: with as many different exchanges as costs there is nothing to fit."""
    words = ("layout=2x8", "sizes.min=256K", "sizes.max=4M", "sizes.factor=4")
    cases = fake_runs.planned("collective=pairs", "algorithm=direct", *words)
    cases += fake_runs.planned("collective=tp_all_to_all", "algorithm=drop_gather", *words)
    fabric = Emulated(nodes=2, link="200mbit")
    seen = [
        Observation(
            case=dataclasses.replace(case, setup=dataclasses.replace(case.setup, transport="gloo", emulated=fabric)),
            launches_us=(100.0 + case.size_bytes / 25, 110.0 + case.size_bytes / 25),
        )
        for case in cases[1:]
    ]
    with pytest.raises(UsageError, match="too few to fit a model"):
        cost_model.fit(seen)


def test_costs_that_cannot_be_told_apart_are_named() -> None:
    """Of one layout and one algorithm, the constant and the message always come together."""
    truth = {"step_us": 5.0, "alpha_intra_us": 2.0, "beta_intra_us_per_kib": 1.0}
    cases = fake_runs.planned(
        "layout=1x4", "collective=all_to_all", "algorithm=direct", "sizes.min=1K", "sizes.max=4M", "sizes.factor=4"
    )
    (alone,) = cost_model.fit(by_rule(cases, Form("serial"), truth, 0.01)).settings.values()
    more = learned_from("layout=1x4,1x8", "sizes.min=1K", "sizes.max=4M")
    (both,) = cost_model.fit(by_rule(more, Form("serial"), truth, 0.01)).settings.values()
    assert not both.mixed
    assert set(alone.mixed) <= {"step_us", "alpha_intra_us"}
    assert alone.mixed or 0 in (alone.costs["step_us"], alone.costs["alpha_intra_us"])


def test_one_disturbed_point_does_not_bend_the_fit(learned: tuple[Model, list[Observation]]) -> None:
    fitted, seen = learned
    (setting,) = fitted.settings.values()
    spoilt = [
        dataclasses.replace(item, launches_us=tuple(4 * time for time in item.launches_us))
        if item.case.collective == "all_to_all" and item.case.size_bytes == 8192 and item.case.setup.nodes == 4
        else item
        for item in seen
    ]
    assert spoilt != seen
    (bent,) = cost_model.fit(spoilt).settings.values()
    for name in ("alpha_inter_us", "beta_inter_us_per_kib"):
        assert bent.costs[name] == pytest.approx(setting.costs[name], rel=0.1)


def test_a_model_is_plain_json(learned: tuple[Model, list[Observation]]) -> None:
    fitted, seen = learned
    raw = json.loads(json.dumps(fitted.as_dict(), allow_nan=False))
    again = Model.from_dict(raw)
    assert again.predict(seen[0].case) == fitted.predict(seen[0].case)
    assert again.as_dict() == fitted.as_dict() and again.describe() == fitted.describe()
    with pytest.raises(CorruptFile, match="format 99"):
        Model.from_dict({**raw, "format_version": 99})
    del next(iter(raw["settings"].values()))["form"]
    with pytest.raises(CorruptFile, match="form"):
        Model.from_dict(raw)


def test_the_same_observations_give_the_same_model(learned: tuple[Model, list[Observation]]) -> None:
    fitted, seen = learned
    assert cost_model.fit(seen).as_dict() == fitted.as_dict()


@pytest.fixture
def run(tmp_path: Path) -> tuple[Any, list[Case]]:
    cases = learned_from("layout=2x2", "sizes.min=1K", "sizes.max=1M", "launches=2")
    costs = {"step_us": 5.0, "alpha_intra_us": 2.0, "alpha_inter_us": 10.0, "beta_inter_us_per_kib": 1.0}
    rule = {item.case.case_id: item.launches_us[0] for item in by_rule(cases, Form("serial"), costs)}
    measured = fake_runs.measured(cases, lambda case: rule[case.case_id])
    measured[:2] = [dataclasses.replace(one, skew_us=us) for one, us in zip(measured[:2], (0.01, 0.04), strict=True)]
    first = dataclasses.replace(measured[0], attempt="resumed", time_us=123.0, skew_us=0.02)
    failed = [
        dataclasses.replace(m, status=Status.ERROR, time_us=None) if m.case_id == cases[-1].case_id else m
        for m in measured
    ]
    folder, _ = fake_runs.folder(tmp_path, cases, [*failed, first], 10)
    folder.write_json("run.json", {"format_version": 5, **fake_runs.ABOUT})
    return folder, cases


def test_a_run_folder_is_observed(run: tuple[Any, list[Case]]) -> None:
    folder, cases = run
    seen = cost_model.observe(folder)
    assert seen[0].skew_us == pytest.approx(0.03)  # of 0.02 and 0.04: what was made again does not count twice
    assert [item.case for item in seen] == cases[:-1]  # the last one failed
    assert all(len(item.launches_us) == 2 for item in seen)
    assert seen[0].launches_us[0] == 123.0  # as it was measured last


def test_the_command_sets_every_case_beside_its_prediction(
    run: tuple[Any, list[Case]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cases = run
    file = tmp_path / "model.json"
    assert command.run([folder.path], "table", file) == 0
    shown = capsys.readouterr().out
    assert "a message between nodes" in shown and "r2" in shown and "pairs,direct" in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("# next: ")) <= 100
    assert Model.from_dict(json.loads(file.read_text())).predict(cases[0]) is not None
    assert command.run([folder.path], "json", None) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["r2"] > 0.9 and len(told["cases"]) == len(cases) - 1
    assert {"time_us", "predicted_us", "predicted_us_low", "predicted_us_high", "warning"} <= told["cases"][0].keys()


def test_cases_of_several_settings_are_not_mixed(learned: tuple[Model, list[Observation]]) -> None:
    fitted, seen = learned
    slower = [
        dataclasses.replace(
            item,
            case=dataclasses.replace(item.case, mode="pipelined"),
            launches_us=tuple(10 * us for us in item.launches_us),
        )
        for item in seen
    ]
    (one,) = fitted.settings.values()
    of_both = Model({**fitted.settings, setting_of(slower[0].case): one})
    alone = [line for line in cost_table.table(fitted, seen).splitlines() if not line.startswith("#")]
    lines = cost_table.table(of_both, [*seen, *slower]).splitlines()
    first, second = (lines.index(f"# scripted, {mode}, plain buffers") for mode in ("isolated", "pipelined"))
    assert [line for line in lines[first + 1 : second] if not line.startswith("#")] == alone
    assert len([line for line in lines[second + 1 :] if not line.startswith("#")]) == len(alone)


def test_where_the_model_cannot_be_written_it_is_one_error(run: tuple[Any, list[Case]], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write") as caught:
        command.run([run[0].path], "table", tmp_path / "none" / "model.json")
    assert "--out" in caught.value.hint


def test_inside_one_emulated_node_nothing_is_known_of_its_link() -> None:
    costs = {"alpha_intra_us": 5.0, "beta_intra_us_per_kib": 1.0, "step_us": 2.0}
    fabric = Emulated(nodes=1, link="200mbit")
    seen = [
        dataclasses.replace(
            item, case=dataclasses.replace(item.case, setup=dataclasses.replace(item.case.setup, emulated=fabric))
        )
        for item in by_rule(learned_from("layout=1x4", "sizes.min=1K", "sizes.max=1M"), Form("serial"), costs)
    ]
    fitted = cost_model.fit(seen)
    (setting,) = fitted.settings.values()
    assert setting.form.burst and "burst_us" not in (*setting.unknown, *setting.mixed)  # it is declared
    assert prediction_us(fitted, seen[0].case) > 0


def test_a_cost_that_some_refits_find_free_makes_no_prediction_endless(
    learned: tuple[Model, list[Observation]],
) -> None:
    fitted, seen = learned
    ((key, setting),) = fitted.settings.items()
    free = dataclasses.replace(setting, replicates=[*setting.replicates, [0.0] * len(setting.costs)])
    found = Model({key: free}).predict(seen[0].case)
    assert found is not None and 0 < found.low_us < found.time_us < found.high_us < math.inf
