"""A profile is read as it was written or not at all; scopes match as they say; any profile survives the trip."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commbench.cli import _main
from commbench.errors import CorruptFile, UsageError
from commbench.export import export
from commbench.export.source import ExportSource
from commbench.profile import FORMAT_VERSION, AlgorithmConfig, Choice, Profile, Scope
from commbench.profile.file import check, dump, load, parse, save
from commbench.profile.scope import Here, OutOfScope, differences, matching, only
from commbench.profile.table import Table
from tests.support.export_goldens import EVIDENCE, GLOO, NCCL, sample
from tests.support.strategies import profiles

ONE = Choice(scope="s", collective="all_to_all", min_bytes=0, max_bytes=None, algorithm="direct")
SCOPE = Scope(id="s", transport="gloo", nodes=1, ranks_per_node=4)


def of(*choices: Choice, scope: Scope = SCOPE) -> Profile:
    return Profile(scopes=[scope], choices=list(choices))


def ranges(*limits: tuple[int, int | None]) -> Profile:
    return of(*(dataclasses.replace(ONE, min_bytes=low, max_bytes=high) for low, high in limits))


def one(**values: Any) -> Profile:
    return of(dataclasses.replace(ONE, **values))


def scoped(**values: Any) -> Profile:
    return of(ONE, scope=dataclasses.replace(SCOPE, **values))


def edited(change: Any) -> str:
    """The sample's file after `change` of the parsed JSON, which keeps the digest."""
    raw = json.loads(dump(sample()))
    change(raw)
    return json.dumps(raw)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save(sample(), path)
    assert load(path) == sample()
    assert check(sample()) == []


def test_a_profile_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begin at 8"):
        save(ranges((8, None)), tmp_path / "p.json")
    with pytest.raises(UsageError, match="cannot write") as caught:
        save(sample(), tmp_path / "none" / "p.json")
    assert "--out" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


WHOLE = dump(sample())
DAMAGED = {
    "empty": ("", "not a whole JSON file"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "not a whole JSON file"),
    "cut by one": (WHOLE[:-3], "not a whole JSON file"),
    "nested without end": ("[" * 100_000, "not a whole JSON file"),
    "a list": ("[]", "is not a profile"),
    "other file": ('{"format": "nccl"}', "is not a profile"),
    "newer": (edited(lambda raw: raw.update(format_version=FORMAT_VERSION + 1)),
              f"has profile format {FORMAT_VERSION + 1}, this commbench reads {FORMAT_VERSION}"),
    "no version": (edited(lambda raw: raw.pop("format_version")), "has profile format None"),
    "edited": (edited(lambda raw: raw["choices"][1].update(algorithm="bruck")), "was changed after it was written"),
    "edited digest": (edited(lambda raw: raw.update(digest="0" * 12)), "was changed after it was written"),
    "no digest": (edited(lambda raw: raw.pop("digest")), "was changed after it was written"),
    "choice taken out": (edited(lambda raw: raw["choices"].pop()), "was changed after it was written"),
    "field missing": (edited(lambda raw: raw["choices"][0].pop("collective")), "'collective' of Choice is missing"),
    "field unknown": (edited(lambda raw: raw["scopes"][0].update(colour="red")), "unknown field 'colour' of Scope"),
    "wrong type": (edited(lambda raw: raw["choices"][0].update(min_bytes="0")), "'min_bytes' is '0', expected int"),
    "bool for int": (edited(lambda raw: raw["choices"][0].update(min_bytes=False)), "'min_bytes' is False"),
    "no number": (edited(lambda raw: raw.update(seconds="soon")), "'seconds' is 'soon', expected float"),
    "scopes missing": (edited(lambda raw: raw.pop("scopes")), "'scopes' of Profile is missing"),
    "gap": (dump(ranges((0, 7), (16, None))), "do not follow each other: 7, then 16"),
    "overlap": (dump(ranges((0, 99), (64, None))), "do not follow each other: 99, then 64"),
    "twice open": (dump(ranges((0, None), (64, None))), "do not follow each other: None, then 64"),
    "backwards": (dump(ranges((0, -1), (0, None))), "do not follow each other: -1, then 0"),
    "late": (dump(ranges((8, None))), "begin at 8, not at 0"),
    "closed": (dump(ranges((0, 99))), "end at 99; the last one is open"),
    "collective": (dump(one(collective="all_to_some")), "unknown collective 'all_to_some'"),
    "algorithm": (dump(one(algorithm="fast")), "unknown algorithm of all_to_all 'fast'"),
    "algorithm of another": (dump(one(algorithm="counts_first")), "unknown algorithm of all_to_all 'counts_first'"),
    "parameter": (dump(one(params={"chunks": 2})), "direct has no parameter 'chunks'"),
    "parameter lacking": (dump(one(algorithm="2d_pipelined")), "2d_pipelined lacks its parameter 'chunks'"),
    "way on plain": (dump(one(on_plain=AlgorithmConfig(algorithm="fast"))), "unknown algorithm of all_to_all 'fast'"),
    "buffers": (dump(one(buffers="symmetric")), "gloo has no 'symmetric' buffers"),
    "scope": (dump(one(scope="elsewhere")), "a choice is of scope 'elsewhere', which is not there"),
    "scope twice": (dump(Profile(scopes=[SCOPE, SCOPE], choices=[])), "scope 's' is there twice"),
    "scope without a name": (dump(Profile(scopes=[dataclasses.replace(SCOPE, id="")], choices=[])), "cannot be the"),
    "scope of two lines": (dump(Profile(scopes=[dataclasses.replace(SCOPE, id="a\nb")], choices=[])), "cannot be the"),
    "transport": (dump(scoped(transport="udp")), "unknown transport 'udp'"),
    "binding": (dump(scoped(binding="best")), "unknown binding 'best'"),
    "masks": (dump(scoped(binding="explicit", cpu_masks="0-x")), "cpu_masks is '0-x'"),
    "no masks": (dump(scoped(binding="explicit")), "needs cpu_masks"),
    "layout": (dump(scoped(nodes=0)), "a layout of 0 x 4"),
    "variable": (dump(scoped(env={"A B": "1"})), "'A B' cannot be the name of a variable"),
    "variable for a shell": (dump(scoped(env={"A;reboot": "1"})), "'A;reboot' cannot be the name of a variable"),
    "value": (dump(scoped(env={"A": "a\0b"})), "A cannot be 'a\\x00b'"),
    "value that is no text": (dump(scoped(env={"A": "\ud800"})), "A cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("command", ["export", "exec"])
def test_what_is_no_profile_is_one_error_and_exit_2(
    kind: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = DAMAGED[kind]
    path = tmp_path / "p.json"
    path.write_text(text)
    name = str(path)
    code = _main([command, name, "--format", "json"] if command == "export" else [command, "--profile", name, "true"])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    error, hint = err.splitlines()
    assert error.startswith("error: ") and name in error and words in error
    assert hint.startswith("hint: ") and ("tune again" in hint)


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"\xff\xfe{}", "it is not text")])
def test_what_cannot_be_read_is_told(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        load(path)
    assert "commbench tune" in caught.value.hint
    with pytest.raises(UsageError, match="cannot read the profile"):
        load(tmp_path)


def test_curves_do_not_mix() -> None:
    """Each collective, argument and capture has ranges of its own."""
    profile = of(
        dataclasses.replace(ONE, max_bytes=99),
        dataclasses.replace(ONE, min_bytes=100, algorithm="bruck"),
        dataclasses.replace(ONE, captured=True, algorithm="pairwise", params={"window": 2}),
        dataclasses.replace(ONE, collective="all_reduce", arguments={"op": "sum"}),
    )
    assert check(profile) == []
    table = Table(profile, "s")

    def label(size: int, **asked: Any) -> str | None:
        curve = table.curve(asked.pop("collective", "all_to_all"), **asked)
        return curve.at(size).label if curve else None

    assert [label(size) for size in (0, 99, 100, 1 << 50)] == ["direct", "direct", "bruck", "bruck"]
    assert label(5, captured=True) == "pairwise window=2"
    assert label(5, collective="all_reduce", arguments={"op": "sum"}, captured=True) == "direct"
    assert label(5, collective="all_reduce", arguments={"op": "max"}) is None
    assert label(5, collective="all_reduce") is None and label(5, collective="broadcast") is None


HERE = Here(
    transport=NCCL.transport, nodes=2, ranks_per_node=8, versions=NCCL.versions, gpu=NCCL.gpu,
    environ={
        **{name: value for name, value in NCCL.env.items() if value != "unset"},
        "COMMBENCH_BINDING": "pci",
        "HOME": "/",
    },
)  # fmt: skip


def test_the_scope_that_asks_for_most_wins() -> None:
    loose = Scope(id="loose", transport="nccl", nodes=None, ranks_per_node=None, binding="pci")
    layout = dataclasses.replace(loose, id="layout", nodes=2, ranks_per_node=8)
    versions = dataclasses.replace(layout, id="versions", versions={"nccl": "2.28.9"})
    other = dataclasses.replace(versions, id="other", versions={"nccl": "2.27.1", "torch": "2.13.0"}, gpu="NVIDIA H200")
    scopes = [loose, layout, versions, other]
    for _ in range(5):
        random.Random(_).shuffle(scopes)
        assert matching(Profile(scopes=scopes, choices=[]), HERE).id == "versions"
        assert matching(Profile(scopes=[*scopes, NCCL], choices=[]), HERE) is NCCL
        elsewhere = dataclasses.replace(HERE, nodes=3)
        assert matching(Profile(scopes=scopes, choices=[]), elsewhere).id == "loose"


DIFFERENCES = [
    ({"transport": "gloo"}, "transport: the profile is for nccl, here is gloo"),
    ({"nodes": 4}, "nodes: the profile is for 2, here is 4"),
    ({"ranks_per_node": 4}, "ranks per node: the profile is for 8, here is 4"),
    ({"versions": {"torch": "2.13.0", "nccl": "2.30.7"}}, "nccl version: the profile is for 2.28.9, here is 2.30.7"),
    ({"versions": {"torch": "2.13.0"}}, "nccl version: the profile is for 2.28.9, here is none"),
    ({"gpu": "NVIDIA A100"}, "GPU: the profile is for NVIDIA H200, here is NVIDIA A100"),
    ({"environ": {**HERE.environ, "COMMBENCH_BINDING": "none"}}, "binding: the profile is for pci, here is none"),
    ({"environ": {**HERE.environ, "COMMBENCH_FABRIC": "1 Gb/s"}}, "fabric: the profile is for a real one, here is 1"),
    ({"environ": {**HERE.environ, "NCCL_PROTO": "LL"}}, "NCCL_PROTO: the profile is for Simple, here is LL"),
    ({"environ": {**HERE.environ, "NCCL_P2P_NET_CHUNKSIZE": "1"}}, "CHUNKSIZE: the profile is for unset, here is 1"),
    ({"environ": {"COMMBENCH_BINDING": "pci"}}, "OMP_NUM_THREADS: the profile is for 4, here is unset"),
]


@pytest.mark.parametrize(("change", "words"), DIFFERENCES)
def test_what_differs_is_listed(change: dict[str, Any], words: str) -> None:
    profile, here = Profile(scopes=[NCCL], choices=[]), dataclasses.replace(HERE, **change)
    assert differences(NCCL, HERE) == []
    with pytest.raises(OutOfScope, match=re.escape(words)) as caught:
        matching(profile, here, name="p.json")
    assert str(caught.value).startswith("p.json was not made for this set-up: ")
    assert str(caught.value).count("the profile is for") == len(differences(NCCL, here))
    assert "allow_mismatch=True" in caught.value.hint
    tuning = f"commbench tune quick transport={here.transport} nodes={here.nodes} ranks_per_node={here.ranks_per_node}"
    assert caught.value.hint.startswith(f"tune here: {tuning}") and " --out here.json" in caught.value.hint
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]  # which a traceback ends with
    with pytest.raises(OutOfScope) as of_backend:
        matching(profile, here, of_program=False)
    assert of_backend.value.hint.endswith(" --out here.json")
    assert ("commbench exec" in caught.value.hint) == ("environ" in change and "a real one" not in words)
    if "transport" in change:
        with pytest.raises(OutOfScope):
            matching(profile, here, allow_mismatch=True)
    else:
        assert matching(profile, here, allow_mismatch=True) is NCCL


def test_a_mismatch_that_is_allowed_takes_the_nearest_scope() -> None:
    far = dataclasses.replace(NCCL, id="far", nodes=64, gpu="NVIDIA A100")
    profile = Profile(scopes=[far, NCCL], choices=[])
    assert matching(profile, dataclasses.replace(HERE, nodes=3), allow_mismatch=True) is NCCL
    with pytest.raises(OutOfScope, match="has no scope"):
        matching(Profile(scopes=[], choices=[]), HERE, allow_mismatch=True)


def test_which_scope_is_meant_has_to_be_clear() -> None:
    assert only(sample(), "anywhere", "p.json") == GLOO
    assert only(of(ONE), "", "p.json") is SCOPE
    for wanted, words in (("", "has 5 scopes"), ("nowhere", "has no scope 'nowhere'")):
        with pytest.raises(OutOfScope, match=words) as caught:
            only(sample(), wanted, "p.json")
        assert "h200-2x8 (nccl" in caught.value.hint


@settings(max_examples=40, deadline=None)
@given(profile=profiles(), sizes=st.lists(st.integers(0, 1 << 45), max_size=8))
def test_any_profile_comes_back_from_its_json_the_same(profile: Profile, sizes: list[int]) -> None:
    assert check(profile) == []
    written = export("json", ExportSource(profile, Path("p.json"))).text
    again = parse(written, "p.json")
    assert again == profile
    assert export("json", ExportSource(again, Path("p.json"))).text == written
    for scope in profile.scopes:
        alone = parse(export("json", ExportSource(profile, Path("p.json"), scope.id)).text, "p.json")
        assert alone.scopes == [scope] and alone.choices == profile.of_scope(scope.id)
        before, after, last = (Table(item, scope.id) for item in (profile, again, alone))
        for choice in profile.of_scope(scope.id):
            asked = {"captured": choice.captured, "arguments": choice.arguments}
            one, two, three = (table.curve(choice.collective, **asked) for table in (before, after, last))
            assert one and two and three
            last_byte = 1 << 62 if choice.max_bytes is None else choice.max_bytes
            for size in [*sizes, choice.min_bytes, last_byte]:
                assert one.at(size) == two.at(size) == three.at(size)
            assert two.at(choice.min_bytes) == two.at(last_byte) == choice


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, len(WHOLE) - 2))
def test_a_file_that_was_cut_is_never_read(cut: int) -> None:
    with pytest.raises(CorruptFile):
        parse(WHOLE[:cut], "p.json")


def test_evidence_is_kept_to_the_last_digit() -> None:
    exact = dataclasses.replace(EVIDENCE, ratio=0.1 + 0.2, low=5e-324, p=None)
    profile = one(evidence=[exact])
    assert parse(dump(profile), "p.json").choices[0].evidence == [exact]
