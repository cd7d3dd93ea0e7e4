"""Recipes, keys, cases and launches."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from commbench import algorithms, collectives
from commbench.cli import _main
from commbench.errors import UsageError
from commbench.records import Case
from commbench.serialise import as_dict, from_dict
from commbench.sweep import config, plan, prepare, recipes
from commbench.sweep.key import NO_DEFAULT
from commbench.sweep.keys import GROUPS, KEYS, LISTED, explain_keys
from tests.conftest import PATIENCE_S, REPOSITORY


def planned(*words: str) -> list[plan.PlannedCase]:
    return plan.expand(prepare.configure(words)[1])


@pytest.mark.parametrize("recipe", recipes.groups()["recipe"])
def test_every_recipe_composes_and_plans(recipe: str) -> None:
    cases = planned(recipe)
    reasons = {item.skip for item in cases if item.skip}
    # What is for the nodes of a cluster is in the plan of one machine too, with its reason.
    known = (
        "is not defined in place",
        *(["two levels need at least 2 nodes"] if recipe in ("dispatch_training", "calibration") else []),
        *(["groups=rails of 1x4"] if recipe == "calls" else []),
    )
    assert len(cases) > len(reasons) and all(any(text in reason for text in known) for reason in reasons)


def test_groups_by_their_ranks_are_one_value() -> None:
    cases = planned("quick", "nodes=2", "ranks_per_node=2", "groups=ranks:1,2;0,3", "algorithm=direct")
    assert {(item.case.groups, item.case.spec.layout.ranks, item.skip) for item in cases} == {("ranks:0,3;1,2", 2, "")}


@pytest.mark.parametrize("sizes", recipes.groups()["sizes"])
def test_every_size_group_composes(sizes: str) -> None:
    assert planned("quick", f"sizes={sizes}")


def test_quick_is_twenty_cases_or_more() -> None:
    assert len(planned("quick")) >= 20


def test_a_runs_config_is_a_recipe_that_plans_the_same_cases(tmp_path: Path) -> None:
    words = ("quick", "env.A=^ib,b", "window=1,2", "sizes.list=3K,1M", "dtype=bf16,fp32")
    path = tmp_path / "again.yaml"
    path.write_text(prepare.show_config(prepare.configure(words)[1]))
    assert [item.case.case_id for item in planned(str(path))] == [item.case.case_id for item in planned(*words)]


def test_hydras_grammar_means_what_its_users_expect() -> None:
    cases = planned("quick", "algorithm=direct,2d_intra_first", "dtype=choice(bf16,fp32)", "sizes.min=4K")
    assert {item.case.algorithm for item in cases} == {"direct", "2d_intra_first"}
    assert {item.case.dtype for item in cases} == {"bf16", "fp32"}
    assert min(item.case.size_bytes for item in cases) == 4096
    windows = planned("quick", "algorithm=pairwise", "window=range(1,4)")
    assert {item.case.params["window"] for item in windows} == {1, 2, 3}
    every = {item.case.algorithm for item in planned("quick", "algorithm=all")}
    assert every == {"direct", "pairwise", "bruck", "2d_intra_first", "2d_inter_first", "2d_pipelined"}


def test_environment_values_pass_raw() -> None:
    overrides = recipes.parse_overrides(["env.NCCL_IB_HCA=^ib,a=b", "env.X='a,b'", "env.Y="])
    assert overrides.env == {"NCCL_IB_HCA": ["^ib", "a=b"], "X": ["a,b"], "Y": [""]}
    setups = {str(item.case.setup) for item in planned("quick", "transport=gloo", "nodes=2", "env.A=1,2", "env.B=x")}
    assert len(setups) == 2 and all(", B=x" in setup for setup in setups)


def test_case_ids_are_stable_and_tell_cases_apart() -> None:
    once, again = planned("quick"), planned("quick")
    ids = [item.case.case_id for item in once]
    assert ids == [item.case.case_id for item in again]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {item.case.case_id for item in planned("quick", "seed=1")}
    # A case survives its JSON.
    case = once[0].case
    assert from_dict(Case, json.loads(json.dumps(as_dict(case)))) == case


def test_sizes_round_down_and_merge() -> None:
    cases = planned(
        "quick", "transport=gloo", "nodes=2", "algorithm=direct", "sizes.min=1", "sizes.max=130", "sizes.factor=1.1"
    )
    assert [item.case.size_bytes for item in cases] == [0, 4, 8, 16, 32, 64, 128]
    reasons = [
        "the size rounds down to 0 for 4 ranks",
        *(f"{part} B are not a whole number of fp32" for part in (1, 2)),
    ]
    assert [item.skip for item in cases] == [*reasons, "", "", "", ""]


def test_a_list_of_sizes_and_ranges_that_are_typed_over_a_recipes_list(tmp_path: Path) -> None:
    def sizes(*words: str) -> list[int]:
        return sorted({item.case.size_bytes for item in planned(*words, "transport=gloo", "algorithm=direct")})

    assert sizes("quick", "sizes.list=1M,1K,100K,1K") == [1 << 10, 100 << 10, 1 << 20]
    path = tmp_path / "mine.yaml"
    path.write_text("# @package _global_\ndefaults:\n  - override /sizes: small\nsizes:\n  list: [3K, 5K]\n")
    assert sizes(str(path)) == [3 << 10, 5 << 10]
    assert sizes(str(path), "sizes.min=8K", "sizes.max=16K", "sizes.factor=2") == [8 << 10, 16 << 10]
    assert sizes(str(path), "sizes.list=7K") == [7 << 10]


def test_launches_are_interleaved_in_seeded_order() -> None:
    cases = planned("quick", "transport=gloo", "nodes=2", "env.A=1,2", "launches=3")
    order = list(plan.launches(cases, seed=4))
    assert [item.index for item in order] == [0, 0, 1, 1, 2, 2]
    assert all({order[i].setup.key, order[i + 1].setup.key} == {c.case.setup.key for c in cases} for i in (0, 2, 4))
    assert order == list(plan.launches(cases, seed=4))
    assert [c.case_id for c in order[0].cases] != [c.case_id for c in order[2].cases]
    assert sorted(c.case_id for c in order[0].cases) == sorted(
        c.case.case_id for c in cases if c.case.setup.key == order[0].setup.key
    )
    assert order != list(plan.launches(cases, seed=5))


def test_a_user_recipe_with_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# @package _global_\nlaunchs: 3\n")
    with pytest.raises(UsageError, match="unknown key 'launchs'"):
        planned(str(path))
    path.write_text("a: [")
    with pytest.raises(UsageError, match="does not compose"):
        planned(str(path))


def test_every_key_is_explained_and_its_default_is_one_of_its_values() -> None:
    help_text = explain_keys(80)
    for name, key in KEYS.items():
        assert key.help and key.group in GROUPS and f"\n  {name}" in help_text, name
        if key.default is not NO_DEFAULT:
            key.read(name, key.default)


def test_every_listed_key_is_a_field_and_every_field_is_shown() -> None:
    fields = [item.name for item in dataclasses.fields(config.SweepConfig)]
    assert {name.replace(".", "_") for name in LISTED} == {*fields} - {
        "recipe", "typed", "part", "params", "arguments", "layer", "link_rate", "env", "size_range",
    }  # fmt: skip
    (shown,) = prepare.configure(["alltoall"])[1]
    assert {*config.flatten(shown.as_keys())} == {*LISTED, "sizes.min", "sizes.max", "sizes.factor", "env"}


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  transport=gloo" in text and "  sizes.list" in text and "  env.NAME=A,B" in text and "  window" in text


def test_dry_run_of_ten_thousand_cases_is_small() -> None:
    """Under 300 MiB; `make bench` times it."""
    words = ["quick", "sizes.min=1K", "sizes.max=1G", "sizes.factor=2", "dtype=fp32,fp16,bf16,int32,uint8"]
    words += ["mode=isolated,pipelined", "cache=warm,cold", "env.A=" + ",".join(map(str, range(6))), "algorithm=all"]
    # Not getrusage: its maximum includes what the process was before exec, a copy of this one.
    script = (
        "import sys\nfrom commbench.cli import _main\ncode = _main(sys.argv[1:])\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:'))\n"
        "print(peak.split()[1], file=sys.stderr)\nsys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "sweep", *words, "--dry-run"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert int(result.stdout.split()[0]) >= 10_000
    assert int(result.stderr.split()[-1]) < 300 * 1024


# What a collective is asked


def test_every_collective_and_algorithm_of_a_sweep() -> None:
    cases = planned("quick", "transport=gloo", "collective=all", "algorithm=all")
    ways = {(item.case.collective, item.case.algorithm) for item in cases}
    from commbench import algorithms

    one_sided = {way for way, algorithm in algorithms.TABLE.items() if algorithm.one_sided}
    every = {way for way in algorithms.TABLE if way[0] in collectives.EVERY}
    assert ways == every - one_sided  # whose skipped rows nobody wants to read
    on_gpus = planned("gpu", "collective=all", "algorithm=all")
    assert {(item.case.collective, item.case.algorithm) for item in on_gpus} == every
    assert {item.case.buffers for item in on_gpus if item.case.algorithm == "symm_store"} == {"symmetric"}
    assert {item.case.buffers for item in on_gpus if item.case.algorithm == "direct"} == {
        "plain", "registered", "symmetric",
    }  # fmt: skip


def test_quick_is_for_gpus_where_nccl_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commbench.machine.gpus.count", lambda environ: 4)
    monkeypatch.setattr("commbench.transports.missing", lambda name, **_: None)
    cases = planned("quick")
    assert {(item.case.setup.transport, str(item.case.setup.layout)) for item in cases} == {("nccl", "1x4")}
    assert {item.case.setup.transport for item in planned("quick", "transport=gloo")} == {"gloo"}
    assert {str(item.case.setup.layout) for item in planned("quick", "ranks_per_node=2")} == {"1x2"}
    assert {str(item.case.setup.layout) for item in planned("gpu")} == {"1x4"}
    monkeypatch.setattr("commbench.machine.gpus.count", lambda environ: 1)
    assert "nccl" not in {item.case.setup.transport for item in planned("quick")}


def test_a_recipes_algorithms_do_not_stand_in_the_way_of_another_collective() -> None:
    """quick names those of all_to_all; what the user types must fit, though."""
    assert {item.case.algorithm for item in planned("quick", "collective=all_reduce")} == {"direct"}
    for collective in ("all_reduce", "dispatch", "tp_all_to_all"):
        with pytest.raises(UsageError, match=f"bruck is not an algorithm of {collective}") as caught:
            planned("quick", f"collective={collective}", "algorithm=bruck")
        assert caught.value.hint == f"{collective} has {', '.join(algorithms.names(collective))}; or all"
    with pytest.raises(UsageError, match="no algorithm of all_reduce is asked for"):
        planned("quick", "collective=all_reduce,all_to_all", "algorithm=bruck")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("op=sum",), "op is set, but has no effect"),
        (("model_dim=8",), "model_dim is set, but has no effect"),
        (("collective=all_to_allv", "send_bytes=4096", "sizes.max=1K"), "sizes.max is set, but has no effect"),
        (("collective=all_to_allv", "alpha=2"), "alpha is set, but has no effect"),
        (("collective=all_to_allv", "splits=zipf", "step=1"), "step is set, but has no effect"),
        (("collective=all_reduce", "window=2"), "window is set, but has no effect"),
        (("collective=all_reduce", "op=avg"), "unknown op 'avg'"),
        (("collective=all_to_allv", "splits=zip"), "unknown splits 'zip'"),
        (("collective=all_to_allv", "splits=matrix"), "splits=matrix needs a file"),
        (("collective=all_to_allv", "splits=zipf", "alpha=-1"), "alpha is -1"),
        (("collective=broadcast", "root=0.5"), "root is 0.5"),
        (("groups=pairs",), "groups is 'pairs'"),
        (("groups=blocks:0",), "groups is 'blocks:0'"),
        (("in_place=maybe",), "unknown in_place 'maybe'"),
        (("tokens=8",), "not set: model_dim, top_k"),
        (("tokens=8", "top_k=2", "model_dim=64", "-b1K", "sizes.max=4K"), "unexpected argument '-b1K'"),
        (("tokens=8", "top_k=2", "model_dim=64", "sizes.max=4K"), "sizes.max is set, but tokens"),
    ],
)
def test_what_cannot_be_asked_is_said(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned("quick", "transport=gloo", *words)


def test_values_without_effect_make_no_cases_twice() -> None:
    words = (
        "transport=gloo",
        "nodes=2",
        "collective=all_to_allv",
        "algorithm=direct",
        "-e",
        "sizes.min=1K",
        "sizes.max=1K",
    )
    words = tuple(word for word in words if word != "-e")
    assert len(planned("quick", *words, "splits=even,linear", "alpha=1,2,3", "splits=even,zipf")) == 4


def test_sizes_of_a_layer() -> None:
    cases = planned("quick", "transport=gloo", "collective=all_to_all,all_to_allv", "algorithm=direct", "dtype=bf16",
                    "tokens=64", "model_dim=32", "top_k=1,2", "splits=even,zipf", "alpha=1.5", "experts=8")  # fmt: skip
    sent = {
        (item.case.collective, item.case.arguments.get("splits"), item.case.arguments.get("send_bytes"))
        for item in cases
    }
    token = 32 * 2
    assert sent == {("all_to_all", None, None)} | {
        ("all_to_allv", splits, 64 * k * token) for splits in ("even", "zipf") for k in (1, 2)
    }
    even = {item.case.size_bytes for item in cases if item.case.arguments.get("splits") != "zipf"}
    assert even == {64 * token, 2 * 64 * token}
    zipf = [item.case for item in cases if item.case.arguments.get("splits") == "zipf"]
    assert all(case.size_bytes > int(case.arguments["send_bytes"]) for case in zipf), "someone gets more than the mean"
    assert all(case.size_bytes % token == 0 for case in zipf), "a token was cut"


def test_groups_are_smaller_worlds() -> None:
    cases = planned("quick", "transport=gloo", "algorithm=direct", "nodes=2", "ranks_per_node=4", "sizes.max=1K",
                    "groups=world,rails,blocks:4,blocks:3,blocks:8")  # fmt: skip
    ranks = {item.case.groups: item.case.spec.ranks for item in cases if not item.skip}
    assert ranks == {"world": 8, "rails": 2, "blocks:4": 4, "blocks:8": 8}
    assert [item.skip for item in cases if item.skip] == ["blocks:3: 8 ranks do not divide into groups of 3"]


# Files that say how an exchange splits

MATRIX = "# from, to\n0 16 32\n48 0 0\n16 16 64\n"


def test_a_matrix_file_is_the_exchange(tmp_path: Path) -> None:
    path = tmp_path / "bytes.txt"
    path.write_text(MATRIX)
    words = ("transport=gloo", "collective=all_to_allv", "algorithm=direct", "splits=matrix", "nodes=1")
    (item,) = planned("quick", *words, f"matrix={path}", "ranks_per_node=3")
    case = item.case
    assert not item.skip and case.size_bytes == 96  # rank 2 sends 96 and gets 96, all others less
    from commbench import collectives

    collective = collectives.get("all_to_allv")
    assert [collective.input_bytes(case.spec, rank) for rank in range(3)] == [48, 48, 96]
    assert [collective.output_bytes(case.spec, rank) for rank in range(3)] == [64, 32, 96]
    assert collective.mean_bytes(case.spec) == 64
    (item,) = planned("quick", *words, f"matrix={path}", "ranks_per_node=4")
    assert item.skip == "the matrix is for 3 ranks, not 4"
    # The content is in the case: what happens to the file later does not matter.
    path.write_text("0 8\n8 0\n")
    assert item.case.case_id != planned("quick", *words, f"matrix={path}", "ranks_per_node=4")[0].case.case_id


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1\n-4 0\n", "the cell from rank 1 to rank 0 is '-4'"),
        ("0 1.5\n4 0\n", "the cell from rank 0 to rank 1 is '1.5'"),
        ("0 4 4\n4 0\n4 4 0\n", "rank 1 has 2 cells, but there are 3 lines"),
        ("0 4\n4 x\n", "the cell from rank 1 to rank 1 is 'x'"),
        ("0 nan\n4 0\n", "is 'nan'"),
        ("", "the matrix is empty"),
        ("0 0\n0 0\n", "every cell is 0"),
    ],
)
def test_a_bad_matrix_is_named_by_cell(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bytes.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        planned("quick", "collective=all_to_allv", "splits=matrix", f"matrix={path}")
    assert str(path) in str(caught.value)


def test_a_cell_that_cuts_an_element_is_skipped_with_the_cell(tmp_path: Path) -> None:
    path = tmp_path / "bytes.txt"
    path.write_text("0 6\n4 0\n")
    words = ("transport=gloo", "collective=all_to_allv", "splits=matrix", f"matrix={path}", "nodes=1")
    cases = planned("quick", *words, "algorithm=direct", "ranks_per_node=2", "dtype=fp32,bf16")
    reasons = {item.case.dtype: item.skip for item in cases}
    assert reasons == {"fp32": "6 B from rank 0 to rank 1 are not a whole number of fp32", "bf16": ""}


def test_a_routing_trace(tmp_path: Path) -> None:
    path = tmp_path / "routing.jsonl"
    steps = [[[1, 2, 3, 4], [4, 3, 2, 1]], [[0, 0, 0, 8], [8, 0, 0, 0]]]
    path.write_text("".join(json.dumps({"layer": 3, "counts": step}) + "\n" for step in steps))
    words = ("transport=gloo", "collective=all_to_allv", "algorithm=direct", "splits=trace", f"trace={path}",
             "nodes=1", "ranks_per_node=2", "dtype=bf16")  # fmt: skip
    cases = [item.case for item in planned("quick", *words, "step=0,1", "model_dim=8")]
    assert {case.arguments["step"]: json.loads(str(case.arguments["matrix"])) for case in cases} == {
        0: [[3 * 16, 7 * 16], [7 * 16, 3 * 16]],  # four experts, two on each rank
        1: [[0, 8 * 16], [8 * 16, 0]],
    }
    with pytest.raises(UsageError, match="nothing says how long one is"):
        planned("quick", *words)
    with pytest.raises(UsageError, match=r"step=2: the trace has steps 0 .. 1"):
        planned("quick", *words, "step=2", "model_dim=8")
    path.write_text('{"counts": [[1, 2], [3]]}\n')
    with pytest.raises(UsageError, match="line 1: no step of a routing trace"):
        planned("quick", *words, "model_dim=8")


def test_a_run_with_files_and_layers_is_a_recipe_again(tmp_path: Path) -> None:

    matrix = tmp_path / "bytes.txt"
    matrix.write_text("0 16\n32 0\n")
    for words in (
        ("quick", "collective=all_to_allv", "splits=matrix", f"matrix={matrix}", "nodes=1", "ranks_per_node=2"),
        ("moe", "tokens=8", "groups=world,blocks:2", "overlap=none,matmul"),
    ):
        path = tmp_path / "again.yaml"
        path.write_text(prepare.show_config(prepare.configure(words)[1]))
        assert [item.case.case_id for item in planned(str(path))] == [item.case.case_id for item in planned(*words)]


def test_a_recipe_can_be_varied_and_its_sizes_taken_back() -> None:
    """What moe sets for Zipf does not stand in the way of other splits, or of another collective."""
    for word in ("splits=even", "collective=all_to_all", "splits=zipf"):
        assert all(not item.skip for item in planned("moe", "transport=gloo", word))
    words = ("transport=gloo", "splits=even", "tokens=null", "sizes.min=64K", "sizes.max=64K", "algorithm=direct")
    assert {item.case.size_bytes for item in planned("moe", *words)} == {64 << 10}


def test_a_cell_beyond_any_machine_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bytes.txt"
    path.write_text(f"0 {10**20}\n4 0\n")
    with pytest.raises(UsageError, match="more bytes than any machine has"):
        planned("quick", "collective=all_to_allv", "splits=matrix", f"matrix={path}")


def test_linear_splits_by_hand() -> None:
    from commbench.collectives import splits

    size, asked = splits.settle(6 * 16, 3, {"splits": "linear"})
    assert size == 96
    assert splits.counts(3, asked).tolist() == [[16, 32, 48], [32, 48, 16], [48, 16, 32]]


def test_zipf_bound_is_that_of_the_hot_receiver() -> None:
    from commbench import collectives
    from commbench.collectives import splits
    from commbench.layout import Layout
    from commbench.links import LeastTime, LinkRate, least_time
    from commbench.spec import Spec

    size, asked = splits.settle(1 << 20, 4, {"splits": "zipf", "alpha": 2.0})
    matrix = splits.counts(4, asked)
    spec = Spec(collective="all_to_allv", dtype="uint8", size_bytes=size, layout=Layout(1, 4), arguments=asked)
    hot = int(matrix.sum(axis=0).argmax())
    into_hot = int(matrix[:, hot].sum() - matrix[hot, hot])
    links = dict.fromkeys(("intra", "inter"), LinkRate(gbps=1.0))
    least = least_time(collectives.get("all_to_allv").needs(spec), links, spec.layout)
    assert least == LeastTime(into_hot / 1e3, "")
    assert into_hot > int(matrix.sum(axis=1).max() - matrix.diagonal().min()), "the senders are not the bottleneck"


TP = (
    "quick",
    "transport=gloo",
    "collective=tp_all_to_all",
    "nodes=2",
    "ranks_per_node=4",
    "sizes.min=64K",
    "sizes.max=64K",
)


def test_each_algorithm_gets_the_input_that_it_needs() -> None:
    cases = planned(*TP, "algorithm=all")
    assert not any(item.skip for item in cases)
    inputs = {item.case.algorithm: item.case.arguments["tp_input"] for item in cases}
    partial = {"drop_reduce_scatter", "all_reduce_drop"}
    assert inputs == {
        name: "partial" if name in partial else "replicated" for name in algorithms.names("tp_all_to_all")
    }
    assert {item.case.arguments["tp"] for item in cases} == {4}, "the resolved one is stored"


@pytest.mark.parametrize("word", ["replicated", "partial", "replicated,partial"])
def test_an_input_that_the_user_set_stays(word: str) -> None:
    cases = planned(*TP, "algorithm=all", f"tp_input={word}", "tp=2,4")
    assert len(cases) == 5 * 2 * len(word.split(","))
    for item in cases:
        demanded = algorithms.get("tp_all_to_all", item.case.algorithm).demands["tp_input"]
        fits = item.case.arguments["tp_input"] == demanded
        assert item.skip == ("" if fits else f"{item.case.algorithm} needs tp_input={demanded}")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("tp=3",), "tp=3: the 4 ranks of a node do not divide into tensor-parallel groups of 3"),
        (("nodes=1",), "tp=4: all 4 ranks are one tensor-parallel group, with no other to exchange with"),
        (("groups=rails",), "tp=1: a tensor-parallel group is 2 ranks of a node or more, and nodes here have 1"),
        (("sizes.min=1K", "sizes.max=1K", "algorithm=drop_gather_pipelined", "chunks=1000000"),
         "chunks=1000000: a block of 512 B has 8 units of 64 B to share out"),
        (("algorithm=drop_gather_pipelined", "chunks=0"), "chunks=0: there must be at least one"),
        (("algorithm=all_reduce_drop", "transport=mpi", "dtype=bf16"), "mpi cannot do tp_all_to_all on bf16"),
    ],
)  # fmt: skip
def test_why_tensor_parallel_groups_cannot_be(words: tuple[str, ...], reason: str) -> None:
    assert {item.skip for item in planned(*TP, *words)} == {reason}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tp=1",), "tp is 1"),
        (("tp=two",), "tp is 'two'"),
        (("tp_input=whole",), "whole"),
        (("collective=all_to_all", "tp=2"), "tp is set, but has no effect in this sweep"),
        (("chunks=2",), "chunks is set, but has no effect in this sweep"),
        (("algorithm=drop_gather_pipelined", "chunks=half"), "chunks is 'half'"),
        (("algorithm=direct",), "direct is not an algorithm of tp_all_to_all"),
    ],
)
def test_wrong_words_about_tensor_parallel_groups(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(*TP, *words)


def test_a_recipes_algorithms_give_way_to_the_default_of_a_collective_that_has_none_of_them() -> None:
    cases = planned("quick", "collective=tp_all_to_all,all_gather", "nodes=2")
    found = {(item.case.collective, item.case.algorithm) for item in cases}
    assert found == {("tp_all_to_all", "drop_gather"), ("all_gather", "direct")}
