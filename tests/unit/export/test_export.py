"""What is exported is read by what it is for: a shell, NCCL's reader of files, its plugin's, three mpiexecs, srun."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commbench import cli
from commbench.cli import _main
from commbench.errors import CommbenchError, UsageError
from commbench.export import TABLE, export
from commbench.export.source import ExportSource
from commbench.profile import Choice, Profile, Scope
from commbench.profile.file import dump, load, save
from tests.conftest import PATIENCE_S, REPOSITORY, commbench, environment
from tests.support.export_goldens import EXPORTS, GLOO, GOLDEN, HOSTILE, MASKS, NCCL, SCOPES, golden, sample
from tests.support.strategies import scope_of, values

MPI_VERSIONS = json.loads((REPOSITORY / "tests/records/mpi_versions.json").read_text())["mpiexec"]


def exported(kind: str, scope: Scope, *choices: Choice) -> str:
    return export(
        kind, ExportSource(Profile(scopes=[scope], choices=list(choices)), Path("/p.json"), python="python3")
    ).text


def nccl(**env: str) -> Scope:
    return Scope(id="s", transport="nccl", nodes=2, ranks_per_node=4, env=env)


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_those_on_file(name: str) -> None:
    """After a change that is meant: python -m tests.support.export_goldens, and read the difference."""
    assert golden(name) == (GOLDEN / name).read_text()


def test_every_format_has_a_file_and_the_command_line_knows_it() -> None:
    assert tuple(TABLE) == cli._EXPORTS
    assert {kind for kind, _ in EXPORTS.values()} == set(TABLE)
    assert {path.name for path in GOLDEN.iterdir()} == set(EXPORTS)
    with pytest.raises(UsageError, match="unknown format 'slurm'"):
        export("slurm", ExportSource(sample(), Path("p.json")))


def test_on_stdout_and_in_a_file(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path, out = tmp_path / "p.json", tmp_path / "out"
    save(sample(), path)
    assert _main(["export", str(path), "--format", "json"]) == 0
    assert capsysbinary.readouterr() == (dump(sample()).encode(), b"")
    words = ["export", str(path), "--format", "nccl-conf", "--scope", NCCL.id]
    assert _main(words) == 0
    text, notes = capsysbinary.readouterr()
    assert b"\nNCCL_PROTO=Simple\n" in text
    assert notes.count(b"note: ") == 3 and b"OMP_NUM_THREADS" in notes
    assert _main([*words, "--out", str(out)]) == 0
    assert (out.read_bytes(), capsysbinary.readouterr().out) == (text, b"")
    assert load(path) == sample()


@pytest.mark.parametrize(("words", "error", "hint"), [
    (("--format", "env"), "has 5 scopes", "--scope: h200-2x8"),
    (("--format", "env", "--scope", "x"), "has no scope 'x'", "h200-2x8"),
    (("--format", "torchrun", "--scope", "masks"), "of transport mpi, whose ranks torchrun cannot", "mpiexec or srun"),
    (("--format", "json", "--out", "p.json"), "'p.json' is the profile itself", "another file"),
    (("--format", "json", "--out", "none/p.json"), "cannot write 'none/p.json'", "--out FILE"),
    (("--format", "yaml"), "'yaml' is not one of", "--help"),
    ((), "Missing option '--format'", "--help"),
])  # fmt: skip
def test_what_cannot_be_exported_is_one_error(
    words: Sequence[str], error: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(sample(), Path("p.json"))
    before = Path("p.json").read_text()
    assert _main(["export", "p.json", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and Path("p.json").read_text() == before
    assert err.startswith("error: ") and error in err and hint in err


def test_neither_export_nor_exec_imports_torch(tmp_path: Path) -> None:
    poisoned = tmp_path / "poison" / "torch"
    poisoned.mkdir(parents=True)
    (poisoned / "__init__.py").write_text("raise ImportError('torch was imported')")
    save(sample(), tmp_path / "p.json")
    env = environment(poisoned.parent)
    for words in (
        *(("export", "p.json", "--format", kind, "--scope", NCCL.id) for kind in ("json", "torchrun")),
        ("exec", "--profile", "p.json", "--scope", "anywhere", "--", "true"),
    ):
        done = commbench(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr


# env


def sourced(text: str, given_: dict[str, str], folder: Path) -> dict[bytes, bytes]:
    """The environment after a strict shell has read the file."""
    file = folder / "profile.env"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = subprocess.run(
        ["sh", "-euc", '. "$1"; exec env -0', "sh", str(file)], env={"PATH": os.environ["PATH"], **given_},
        cwd=folder, capture_output=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stderr == b""
    return dict(item.split(b"=", 1) for item in done.stdout.split(b"\0") if item)


@settings(max_examples=60, deadline=None)
@given(env=st.dictionaries(st.sampled_from(["NCCL_ALGO", "_x9", "Z", "FOO"]), values))
def test_a_strict_shell_gets_every_value_as_it_is(
    env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("env")
    before = dict.fromkeys(env, "before")
    found = sourced(exported("env", dataclasses.replace(GLOO, env=env)), before, folder)
    want = {name: value for name, value in env.items() if value != "unset"}
    assert {name: found.get(name.encode()) for name in env} == {
        name: want[name].encode("utf-8", "surrogateescape") if name in want else None for name in env
    }
    assert [path.name for path in folder.iterdir()] == ["profile.env"], "a value was executed"


def test_the_worst_value(tmp_path: Path) -> None:
    found = sourced(exported("env", GLOO), {"HOME": "/"}, tmp_path)
    assert found[b"NOTE"].decode() == HOSTILE
    assert [path.name for path in tmp_path.iterdir()] == ["profile.env"]


def test_values_are_always_between_quotes() -> None:
    text = exported("env", nccl(NCCL_PROTO="Simple", NCCL_ALGO="unset", NCCL_IB_HCA=""))
    assert text.splitlines()[-3:] == ["unset NCCL_ALGO", "export NCCL_PROTO='Simple'", "export NCCL_IB_HCA=''"]


# nccl.conf


def read_as_nccl(data: bytes) -> dict[bytes, bytes]:
    """As setEnvFile of NCCL 2.30.7 reads a file: `fgets` of 4096, which cuts longer lines."""
    found: dict[bytes, bytes] = {}
    for line in re.findall(rb"[^\n]{1,4095}\n?|\n", data):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if not line.startswith(b"#") and b"=" in line:
            name, _, value = line.partition(b"=")
            found.setdefault(name[:1023], value[:1023])
    return found


@settings(max_examples=100, deadline=None)
@given(env=st.dictionaries(st.sampled_from(["NCCL_ALGO", "NCCL_IB_HCA", "OMP_X", "NCCL"]), values))
def test_nccl_reads_what_was_written_or_nothing_is(env: dict[str, str]) -> None:
    own = {name: value for name, value in env.items() if name.startswith("NCCL_") and value != "unset"}
    try:
        text = exported("nccl-conf", nccl(**env))
    except UsageError:
        assert any("\n" in value or "\r" in value for value in own.values())
        return
    data = text.encode("utf-8", "surrogateescape")
    assert read_as_nccl(data) == {
        name.encode(): value.encode("utf-8", "surrogateescape") for name, value in own.items()
    }
    assert all(line.startswith((b"#", b"NCCL_")) for line in data.splitlines())


@pytest.mark.parametrize(("value", "words"), [
    ("a\nNCCL_DEBUG=INFO", r"'a\\nNCCL_DEBUG=INFO'"), ("a\r", "ends with its line"),
    ("x" * 1024, "1024 bytes, and NCCL reads 1023"), ("é" * 512, "1024 bytes, and NCCL reads 1023"),
])  # fmt: skip
def test_what_a_line_of_nccls_file_cannot_hold_is_refused(value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        exported("nccl-conf", nccl(NCCL_NET=value))
    assert "--format env" in caught.value.hint
    assert "NCCL_NET=b\n" in exported("nccl-conf", nccl(NCCL_NET="b", OTHER=value)), "others are not written there"


def test_the_longest_value_that_nccl_reads() -> None:
    value = "é" * 511 + "x"
    assert read_as_nccl(exported("nccl-conf", nccl(NCCL_NET=value)).encode())[b"NCCL_NET"] == value.encode()


# The tuner plugin


def read_as_plugin(text: str) -> list[tuple[str, ...]]:
    """As loadConfig of NCCL's plugins/tuner/example/plugin.c takes a file apart: `fgets` of 256, `strtok`."""
    rows = []
    for line in re.findall(rb"[^\n]{1,255}\n?|\n", text.encode()):
        if not line.startswith((b"#", b"\n")) and (line := line.removesuffix(b"\n")):
            cells = tuple(cell.strip(" \t") for cell in line.decode().split(",") if cell)
            assert 8 <= len(cells) <= 10, f"it would be dropped without a word: {line!r}"
            rows.append(cells)
    return rows


TUNED = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "LL128", "NCCL_MIN_NCHANNELS": "8", "NCCL_MAX_NCHANNELS": "8"}
ANY_SIZE = ("0", "9223372036854775807")
ROWS: list[tuple[str, dict[str, str], str, str]] = [
    ("all_reduce", {}, "allreduce,ring,ll128,8", ""),
    ("all_gather", {}, "allgather,ring,ll128,8", ""),
    ("reduce_scatter", {}, "reducescatter,ring,ll128,8", ""),
    ("broadcast", {}, "broadcast,ring,ll128,8", ""),
    ("all_reduce", {"NCCL_ALGO": "tree"}, "allreduce,tree,ll128,8", ""),
    ("all_reduce", {"NCCL_ALGO": "CollNetDirect"}, "allreduce,collnet_direct,ll128,8", ""),
    ("all_reduce", {"NCCL_ALGO": "Ring;allreduce:Tree", "NCCL_PROTO": "AllReduce:simple"},
     "allreduce,tree,simple,8", ""),
    ("all_gather", {"NCCL_ALGO": "PAT"}, "allgather,pat,ll128,8", ""),
    ("all_gather", {"NCCL_ALGO": "Ring;allreduce:Tree"}, "allgather,ring,ll128,8", ""),
    ("all_gather", {"NCCL_ALGO": "allreduce:Tree"}, "", "NCCL_ALGO to one algorithm"),
    ("all_gather", {"NCCL_ALGO": "Tree"}, "", "NCCL has no tree for it"),
    ("broadcast", {"NCCL_ALGO": "NVLS"}, "", "NCCL has no nvls for it"),
    ("all_reduce", {"NCCL_ALGO": "Ring,Tree"}, "", "NCCL_ALGO to one algorithm"),
    ("all_reduce", {"NCCL_ALGO": "^Tree"}, "", "NCCL_ALGO to one algorithm"),
    ("all_reduce", {"NCCL_ALGO": "unset"}, "", "NCCL_ALGO to one algorithm"),
    ("all_reduce", {"NCCL_ALGO": "fastest"}, "", "NCCL_ALGO to one algorithm"),
    ("all_reduce", {"NCCL_PROTO": "^LL"}, "", "NCCL_PROTO to one protocol"),
    ("all_reduce", {"NCCL_PROTO": ""}, "", "NCCL_PROTO to one protocol"),
    ("all_reduce", {"NCCL_MAX_NCHANNELS": "16"}, "", "NCCL_MAX_NCHANNELS to one number"),
    ("all_reduce", {"NCCL_MIN_NCHANNELS": "unset"}, "", "NCCL_MAX_NCHANNELS to one number"),
    ("all_reduce", {"NCCL_MIN_NCHANNELS": "-1", "NCCL_MAX_NCHANNELS": "-1"}, "", "to one number"),
    ("all_to_all", {}, "", "an all-to-all row would be read as allreduce"),
    ("all_to_allv", {}, "", "choices for none of them"),
    ("sendrecv", {}, "", "choices for none of them"),
]  # fmt: skip


@pytest.mark.parametrize(("collective", "change", "row", "why"), ROWS)
def test_rows_only_of_what_the_profile_says(collective: str, change: dict[str, str], row: str, why: str) -> None:
    choices = [
        Choice(scope="s", collective=collective, min_bytes=low, max_bytes=high, algorithm="direct")
        for low, high in ((0, 1023), (1024, None))
    ]
    text = exported("nccl-tuner", nccl(**{**TUNED, **change}), *choices)
    found = read_as_plugin(text)
    if row:
        name, *cells = row.split(",")
        assert found == [(name, *ANY_SIZE, *cells, "2", "8")]
        assert int(found[0][2]) > 1 << 40
    else:
        assert found == []
        assert why in re.sub(r"\n#\s+", " ", text) and "the file has no row" in text


def test_no_row_where_the_way_is_not_nccls(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [
        Choice(scope="s", collective="all_reduce", min_bytes=0, max_bytes=9, algorithm="direct"),
        Choice(scope="s", collective="all_reduce", min_bytes=10, max_bytes=None, algorithm="ours", params={"x": 1}),
    ]
    text = exported("nccl-tuner", nccl(**TUNED), *choices)
    assert read_as_plugin(text) == [] and "no row for all_reduce: ours x=1 is commbench's own" in text
    other = dataclasses.replace(nccl(**TUNED), transport="gloo")
    assert read_as_plugin(exported("nccl-tuner", other, choices[0])) == []


def test_rows_of_a_scope_for_any_layout() -> None:
    choice = Choice(scope="s", collective="all_gather", min_bytes=0, max_bytes=None, algorithm="direct")
    text = exported("nccl-tuner", dataclasses.replace(nccl(**TUNED), nodes=None), choice)
    assert [row[-2:] for row in read_as_plugin(text)] == [("-1", "-1")]
    assert "says nothing of broadcast, reduce, reducescatter, allreduce" in re.sub(r"\n#\s+", " ", text)


@settings(max_examples=60, deadline=None)
@given(scope=scope_of("s"))
def test_no_value_becomes_a_row(scope: Scope) -> None:
    text = exported("nccl-tuner", scope, Choice(scope="s", collective="all_to_all", min_bytes=0, max_bytes=None,
                                                algorithm="direct"))  # fmt: skip
    assert read_as_plugin(text) == [] and text.isascii()


# Scripts that start ranks


@pytest.fixture
def launchers(tmp_path: Path) -> Path:
    return fake_launchers(tmp_path)


def fake_launchers(parent: Path) -> Path:
    """A folder with an mpiexec, a srun and a torchrun that tell what they were given."""
    folder = parent / "bin"
    folder.mkdir()
    for name in ("mpiexec", "srun", "torchrun"):
        (folder / name).write_text(
            '#!/bin/sh\nif [ "$1" = --version ]; then printf "%s\\n" "$VERSION"; else printf "%s\\0" "$@"; fi\n'
        )
        (folder / name).chmod(0o755)
    return folder


def started(kind: str, scope: Scope, launchers: Path, version: str = "", **given_: str) -> list[str]:
    """The words that the launcher gets when the script starts `prog 'a b' --`."""
    script = launchers.parent / "start.sh"
    script.write_bytes(exported(kind, scope).encode("utf-8", "surrogateescape"))
    env = {"PATH": f"{launchers}:{os.environ['PATH']}", "VERSION": version, **given_}
    done = subprocess.run(
        ["sh", str(script), "prog", "a b", "--"], env=env, capture_output=True, check=True, timeout=PATIENCE_S
    )
    assert done.stderr == b""
    return [word.decode("utf-8", "surrogateescape") for word in done.stdout.split(b"\0")[:-1]]


PROGRAM = ["prog", "a b", "--"]


def through_exec(scope: Scope) -> list[str]:
    return ["python3", "-m", "commbench", "exec", "--profile", "/p.json", "--scope", scope.id, "--", *PROGRAM]


def through_env(scope: Scope) -> list[str]:
    unset = [word for name, value in scope.env.items() if value == "unset" for word in ("-u", name)]
    values = [f"{name}={value}" for name, value in scope.env.items() if value != "unset"]
    return ["env", *unset, *values, f"COMMBENCH_BINDING={scope.binding}", "COMMBENCH_PROFILE=/p.json", *PROGRAM]


FREE = dataclasses.replace(GLOO, nodes=2, ranks_per_node=4)
CPUS = SCOPES["masks-of-cpus"]
OPTIONS = {
    "openmpi": ("--bind-to none --map-by ppr:8:node -n 16", "--bind-to none --map-by slot -n 2"),
    "intel": ("-genv I_MPI_PIN 0 -ppn 8 -n 16", "-genv I_MPI_PIN 0 -n 2"),
    "mpich": ("-bind-to none -ppn 8 -n 16", "-bind-to none -n 2"),
}


@pytest.mark.parametrize("version", [*MPI_VERSIONS, "something else"])
def test_mpiexec_is_spoken_to_in_its_own_words(version: str, launchers: Path) -> None:
    family = MPI_VERSIONS.get(version, "mpich")
    many, one = OPTIONS[family]
    assert started("mpiexec", NCCL, launchers, version) == [*many.split(), *through_exec(NCCL)]
    assert started("mpiexec", MASKS, launchers, version) == [*one.split(), *through_exec(MASKS)]
    found = started("mpiexec", CPUS, launchers, version)
    if family == "mpich":
        assert found == ["-bind-to", "user:0+1+2+3+8,4+5+6+7", "-n", "2", *through_exec(CPUS)]
    else:
        assert found == [*one.split(), *through_exec(CPUS)]
    free = started("mpiexec", FREE, launchers, version)
    assert free == [*many.replace("8", "4").replace("16", "8").split(), *through_env(FREE)]


def test_srun_binds_by_masks_and_nothing_else(launchers: Path) -> None:
    size = ["--nodes=1", "--ntasks=2", "--ntasks-per-node=2"]
    step = ["--distribution=block", "--kill-on-bad-exit=1", "--export=ALL"]
    masks = "--cpu-bind=mask_cpu:0x10f,0xf0"
    assert started("srun", MASKS, launchers) == [*size, *step, masks, "--mem-bind=local", *through_exec(MASKS)]
    assert started("srun", CPUS, launchers) == [*size, *step, masks, *through_exec(CPUS)]
    assert started("srun", NCCL, launchers)[6:] == ["--cpu-bind=none", *through_exec(NCCL)]
    assert started("srun", FREE, launchers)[6:] == ["--cpu-bind=none", *through_env(FREE)]


def test_torchrun_binds_beside_gpus_without_memory_and_nothing_else(launchers: Path) -> None:
    spread = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=commbench", "--rdzv-endpoint=n1:29400"]
    cpus = SCOPES["h200-cpus"]
    found = started("torchrun", cpus, launchers, FIRST_NODE="n1")
    assert found == [*spread, "--nproc-per-node=8", "--numa-binding=node", "--no-python", *through_exec(cpus)]
    found = started("torchrun", NCCL, launchers, FIRST_NODE="n1")
    assert found == [*spread, "--nproc-per-node=8", "--no-python", *through_exec(NCCL)]
    alone = dataclasses.replace(cpus, nodes=1, transport="gloo")
    assert started("torchrun", alone, launchers) == [
        "--standalone", "--nproc-per-node=8", "--no-python", *through_exec(alone)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["mpiexec", "srun", "torchrun"])
def test_what_the_profile_leaves_open_is_asked_for(kind: str, launchers: Path) -> None:
    given_ = {"NODES": "3", "RANKS_PER_NODE": "2", "FIRST_NODE": "n1"}
    found = started(kind, GLOO, launchers, **given_)
    assert found[-len(through_env(GLOO)) :] == through_env(GLOO)
    sizes = {"mpiexec": "-ppn 2 -n 6", "srun": "--nodes=3 --ntasks=6 --ntasks-per-node=2", "torchrun": "--nnodes=3"}
    assert sizes[kind] in " ".join(found)
    script = launchers.parent / "start.sh"
    for name in given_ if kind == "torchrun" else ("NODES", "RANKS_PER_NODE"):
        env = {"PATH": f"{launchers}:{os.environ['PATH']}", **given_}
        del env[name]
        done = subprocess.run(
            ["sh", script, "prog"], env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 2 and name in done.stderr and done.stdout == ""
    done = subprocess.run(["sh", script], env=given_, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2 and f"usage: sh {script} PROGRAM" in done.stderr


@pytest.mark.parametrize("policy", ["pci", "block", "round_robin", "worst", "explicit"])
@pytest.mark.parametrize("kind", ["mpiexec", "srun", "torchrun"])
def test_every_policy_can_be_started(policy: str, kind: str, launchers: Path) -> None:
    masks = "0;1" if policy == "explicit" else ""
    scope = dataclasses.replace(FREE, nodes=1, ranks_per_node=2, binding=policy, cpu_masks=masks)
    found = started(kind, scope, launchers)
    assert found[-len(through_exec(scope)) :] == through_exec(scope), "who binds has to look whether it did"
    if (kind, policy) == ("srun", "explicit"):
        assert found[6:8] == ["--cpu-bind=mask_cpu:0x1,0x2", "--mem-bind=local"]


@settings(max_examples=40, deadline=None)
@given(scope=scope_of("s'$(exit 1)"), kind=st.sampled_from(["mpiexec", "srun", "torchrun"]))
def test_no_value_is_run_by_a_script(scope: Scope, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = fake_launchers(tmp_path_factory.mktemp("start"))
    try:
        found = started(kind, scope, folder, NODES="1", RANKS_PER_NODE="1", FIRST_NODE="n1")
    except CommbenchError:
        assert (kind, scope.transport) == ("torchrun", "mpi")
        return
    words = through_env(scope) if scope.binding == "none" else through_exec(scope)
    assert found[-len(words) :] == words
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bin", "start.sh"]
