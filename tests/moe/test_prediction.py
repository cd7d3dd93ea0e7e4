"""What an A/B expects of exchanges before its rounds: from a profile, from a cost model, or from both."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from commbench.ab.pairs import ARMS, BASELINE
from commbench.cost_model import Model
from commbench.emulated import Emulated
from commbench.errors import CorruptFile, UsageError
from commbench.layout import Layout
from commbench.profile import file
from commbench.profile.table import Table
from commbench.train import ab, ab_arms, ab_run
from commbench.train.ab_prediction import ratio_deviation
from commbench.train.config import TrainConfig, compose
from moe_ref.schedules.predict import predict
from moe_ref.training import build
from moe_ref.training.prediction import exchanges, shape
from tests.moe.test_predict import model_of
from tests.support import profiles

NODES = 2


def exchanges_us(*args: Any) -> float:
    return sum(one.us for one in exchanges(*args))


def config(*words: str) -> TrainConfig:
    return compose(["emulated-2x4", *words])[0]


def table(collective: str, default_us: float, chosen_us: float, **arguments: Any) -> Any:
    evidence = dataclasses.replace(profiles.EVIDENCE, size_bytes=2**19, default_us=default_us, chosen_us=chosen_us)
    ways = {"partial": "drop_reduce_scatter", "replicated": "drop_gather_pipelined"}
    way = ways.get(arguments.get("tp_input", ""), "pairwise")
    return profiles.choice(collective, way, evidence=[evidence], arguments=arguments)


def known(*choices: Any) -> Table:
    profile = profiles.profile(*choices, nodes=NODES, ranks_per_node=4, fabric=str(Emulated(nodes=NODES, link="1gbit")))
    return Table(profile, profile.scopes[0].id)


def test_the_shape_is_that_of_a_part() -> None:
    found = shape(config())
    assert (found.T, found.D, found.E, found.K, found.C, found.W, found.tp) == (512, 128, 8, 2, 128, 8, 4)
    assert found.E * (found.C or 0) * found.row_bytes == 2**19
    assert shape(config("schedule=parm_s1")).C == 32 and shape(config("dtype=bf16")).itemsize == 2
    assert shape(config("capacity=dropless", "tp=1", "batch=16")).C is None


def test_a_profile_knows_what_its_default_takes_and_its_choice() -> None:
    both = known(table("tp_all_to_all", 100, 60, tp=4, tp_input="replicated"),
                 table("tp_all_to_all", 300, 150, tp=4, tp_input="partial"))  # fmt: skip
    # Two layers, there and back, forward and backward.
    assert exchanges_us(config(), None, [both], None) == pytest.approx(2 * 2 * (100 + 300))
    assert exchanges_us(config(), both, [both], None) == pytest.approx(2 * 2 * (60 + 150))
    assert exchanges_us(config("recompute=redo"), both, [both], None) == pytest.approx(2 * 3 * (60 + 150))
    assert exchanges_us(config("batch=16", "parts=4"), both, [both], None) == pytest.approx(2 * 2 * 2 * (60 + 150))
    for words, tables in ((("tp_tokens=duplicate",), [both]), ((), [known(table("all_to_all", 9, 9))])):
        with pytest.raises(UsageError, match="no profile has what tensor_parallel"):  # calls of groups are in none
            exchanges_us(config(*words), None, tables, None)


def test_defaults_are_known_from_any_profile_and_choices_from_ones_own() -> None:
    old = known(table("all_to_all", 9, 9))
    new = known(table("tp_all_to_all", 100, 60, tp=4, tp_input="replicated"),
                table("tp_all_to_all", 300, 150, tp=4, tp_input="partial"))  # fmt: skip
    assert exchanges_us(config(), old, [old, new], None) == pytest.approx(2 * 2 * (100 + 300))
    assert exchanges_us(config(), new, [old, new], None) == pytest.approx(2 * 2 * (60 + 150))


def test_choices_for_other_memory_do_not_hold_in_groups() -> None:
    """Schedules of tensor-parallel ranks exchange in plain memory."""
    evidence = dataclasses.replace(profiles.EVIDENCE, size_bytes=2**19, default_us=100, chosen_us=50)
    its = known(profiles.choice("all_to_all", "pairwise", evidence=[evidence], buffers="symmetric"))
    parm, alone = config("schedule=parm_s2"), config("tp=1", "batch=8", "schedule=sequential")
    model = model_of()
    assert exchanges_us(parm, its, [its], model) == exchanges_us(parm, None, [], model)
    assert exchanges_us(alone, its, [its], model) < 0.6 * exchanges_us(alone, None, [], model)
    (choice,) = its.curves("all_to_all")[0].choices
    other = known(dataclasses.replace(choice, on_plain=profiles.config("all_to_all", "bruck")))
    with pytest.raises(UsageError, match="bruck is what the profile has for plain memory"):
        exchanges_us(parm, other, [other], model)


def test_a_model_knows_every_plan_and_a_profile_makes_it_faster() -> None:
    model = model_of()
    cases = {words: config(*words) for words in ((), ("tp_tokens=duplicate",), ("tp_tokens=drop_pipelined",))}
    for its in cases.values():
        found = predict(build.make_schedule(its), shape(its), model, Layout(2, 4))
        assert exchanges_us(its, None, [], model) == pytest.approx(2 * (found.forward_us + found.backward_us))
    times = [exchanges_us(cases[words], None, [], model) for words in (("tp_tokens=duplicate",), ())]
    assert times[0] > 2 * times[1]
    halved = known(table("tp_all_to_all", 100, 50, tp=4, tp_input="replicated"),
                   table("tp_all_to_all", 300, 150, tp=4, tp_input="partial"))  # fmt: skip
    assert exchanges_us(cases[()], halved, [halved], model) == pytest.approx(times[1] / 2)
    with pytest.raises(UsageError, match="computes beside its exchanges"):
        exchanges_us(config("schedule=pipelined", "tp=1"), None, [], model)


def test_arms_are_predicted_where_they_differ_in_exchanges(tmp_path: Path) -> None:
    choices = (table("tp_all_to_all", 100, 60, tp=4, tp_input="replicated"),
               table("tp_all_to_all", 300, 140, tp=4, tp_input="partial"))  # fmt: skip
    its = profiles.profile(*choices, nodes=2, ranks_per_node=4, fabric=config().emulated and str(config().emulated))
    file.save(its, tmp_path / "p.json")
    launched = ab.Launched(arm=BASELINE, round=-1, tokens_per_s=1, step_us=1000, exposed_us=800, exposed_moe_us=600,
                           losses=())  # fmt: skip

    def said(*words: str, model: Model | None = None) -> tuple[float | None, str]:
        arms = ab_arms.arms_of(("emulated-2x4", *words))[0]
        ratio, why = ab_run.predict(launched, {name: arms[name] for name in ARMS}, model)
        biases.append(None if ratio is None or ratio.bias is None else ratio.bias.low)
        return None if ratio is None else ratio.value, why

    biases: list[float | None] = []
    profile = f"candidate={tmp_path / 'p.json'}"
    assert said(profile)[0] == pytest.approx(1000 / (1000 - 600 * (1 - 200 / 400)))
    found, why = said("baseline.tp_tokens=duplicate", profile)
    assert found is None and "model=FILE" in why
    found, _ = said("baseline.tp_tokens=duplicate", profile, model=model_of())
    assert found is not None and found > 1.5 and biases == [0.85, None, 1.05]
    found, why = said(profile, "candidate.permute=loop", model=model_of())
    assert found is None and "differ in permute" in why
    found, why = said(profile, "candidate.env.A=1", model=model_of())
    assert found is None and "differ in env.A" in why
    assert said("candidate.tp_tokens=duplicate")[0] is None


def test_causes_of_errors_are_those_of_the_profile_and_of_the_model() -> None:
    ends = {"partial": math.exp(2 * 1.96 * 0.02), "replicated": math.exp(2 * 1.96 * 0.05)}
    choices = []
    for way, us in (("partial", 300.0), ("replicated", 100.0)):
        made = table("tp_all_to_all", us, us / 2, tp=4, tp_input=way)
        evidence = dataclasses.replace(made.evidence[0], low=1.0, high=ends[way])
        choices.append(dataclasses.replace(made, evidence=[evidence]))
    its = known(*choices)
    before, after = (exchanges(config(), own, [its], None) for own in (None, its))
    assert all(not one.deviations for one in before)
    # A call of each forward and backward: wrong alike, so three quarters of the time by 2 %, one by 5 %.
    assert ratio_deviation(before, after) == pytest.approx(math.hypot(0.75 * 0.02, 0.25 * 0.05))
    assert ratio_deviation(after, after) == 0, "the same profile in both arms"

    # What the model misses cancels where arms send the same, and is in full where they do not: 4 kinds of stages.
    model = model_of(spread=0.2)
    same = [exchanges(config(), own, [its], model) for own in (None, its)]
    assert 0.01 < ratio_deviation(*same) < 0.06
    duplicates = exchanges(config("tp_tokens=duplicate"), None, [], model)
    assert 0.2 < ratio_deviation(duplicates, same[0]) < 0.2 * math.sqrt(2)
    # Refits: one has twice the costs, for all stages alike, and another 4 times those between nodes.
    (fitted,) = model_of(spread=0.0).settings.values()
    costs = np.array(list(fitted.costs.values()))
    for by, moved in (([2.0] * 5, False), ([1.0, 1.0, 1.0, 4.0, 4.0], True)):
        refitted = Model({"one": dataclasses.replace(fitted, replicates=[list(costs), list(costs * by)])})
        arms = [exchanges(config(*words), None, [], refitted) for words in (("tp_tokens=duplicate",), ())]
        assert (ratio_deviation(*arms) > 1e-3) is moved


def test_a_model_is_read_from_a_file_or_refused(tmp_path: Path) -> None:
    emulated, real = config(), config("fabric=real")
    texts = {"here.json": f"gloo, emulated: {emulated.emulated}, isolated, plain buffers",
             "real.json": "gloo, isolated, plain buffers",
             "other.json": "gloo, emulated: 1gbit links, isolated, plain buffers"}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(json.dumps(model_of(text=text).as_dict()))
    assert ab_run._model(tmp_path / "here.json", emulated).settings
    assert ab_run._model(tmp_path / "real.json", real).settings
    for name, its in (("real.json", emulated), ("other.json", emulated), ("here.json", real)):
        with pytest.raises(UsageError, match="and the training is on gloo"):
            ab_run._model(tmp_path / name, its)
    with pytest.raises(UsageError, match="no cost model"):
        ab_run._model(tmp_path / "none.json", emulated)
    for text in ("{", "[]", '{"settings": 3}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CorruptFile):
            ab_run._model(tmp_path / "bad.json", emulated)
