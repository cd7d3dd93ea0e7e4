"""What cannot be meant ends every command in one error, one hint and exit code 2: no traceback, no endless loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench.cli import _main
from tests.conftest import REPOSITORY

LONG = "9" * 5000  # more digits than Python makes a number of
LARGE = "9" * 200  # a number, but no size of anything
DEEP = "[" * 100_000 + "]" * 100_000
OPS = str(REPOSITORY / "tests/data/formats/nccl-tests-ops.txt")
FILES = {
    "binary": bytes(range(256)),
    "empty": b"",
    "deep.json": b'{"alpha_us": ' + DEEP.encode() + b"}",
    "long.json": b'{"seed": ' + LONG.encode() + b"}",
    "nan.json": b'{"noise": NaN}',
    "inf.json": b'{"noise": 1e999}',
    "trace": b'{"counts": ' + DEEP.encode() + b"}\n",
    "binary.yaml": bytes(range(256)),
    "empty.yaml": b"",
    "list.yaml": b"- a\n",
    "deep.yaml": b"dtype: " + b"[" * 600 + b"]" * 600 + b"\n",
    "self.yaml": b"dtype: &a [*a]\n",
    "inner.yaml": b"sizes: &s\n  min: 1K\n  more: *s\n",
    "interpolated.yaml": b"dtype: ${dtype}\n",
    "long.yaml": b"seed: " + LONG.encode() + b"\n",
}
SCRIPT = ("sweep", "alltoall", "--dry-run", "transport=scripted")
CASES: list[tuple[tuple[str, ...], str]] = [
    # KEY=VALUE words: all commands that take them read them by one function.
    *(
        ((*command, f"seed={LONG}"), "a number of 5000 digits")
        for command in (("sweep", "quick"), ("tune", "quick"), ("train", "tiny"), ("train", "ab", "tiny"))
    ),
    (("sweep", "quick", f"layout={LONG}x2"), "a number of 5000 digits"),
    (("sweep", "quick", f"slow_link=node{LONG}:3"), "a number of 5000 digits"),
    (("sweep", "quick", f"groups=blocks:{LONG}"), "a number of 5000 digits"),
    (("sweep", "quick", "-b", LONG), "a number of 5000 digits"),
    (("sweep", "quick", f"iters={LARGE}", "--dry-run"), "iters is 999"),
    (("sweep", "quick", f"sizes.max={LARGE}", "--dry-run"), "it is too large"),
    (("sweep", "quick", "sizes.max=9999999T", "--dry-run"), "it is too large"),
    (("sweep", "quick", f"sizes.list=1K,{LARGE}", "--dry-run"), "it is too large"),
    *(
        (("sweep", *words, "--dry-run"), "it is too large")
        for words in (
            ("alltoall", "sizes.list=99999TiB"),
            ("quick", "sizes.list=1K,8193T"),
            ("quick", "-b", "9007199254740993000"),
            ("quick", "collective=all_reduce", "sizes.max=8193T"),
            ("quick", f"tokens={1 << 40}", f"model_dim={1 << 30}", f"top_k={1 << 20}"),
            ("quick", "collective=dispatch", "algorithm=all", f"tokens={1 << 40}", f"model_dim={1 << 30}", "top_k=2"),
            ("quick", "collective=all_to_allv", "splits=zipf", f"send_bytes={1 << 50}", "ranks_per_node=64"),
        )
    ),
    (("sweep", "quick", "nodes=100000", "ranks_per_node=1024", "--dry-run"), "102400000 ranks"),
    (("sweep", "quick", "layout=100000x1024", "--dry-run"), "102400000 ranks"),
    (("sweep", "quick", "algorithm=pairwise", f"window={LARGE}", "--dry-run"), "below 2^63"),
    (("sweep", "quick", "sizes.factor=1.0000001", "--dry-run"), "makes"),
    (("sweep", "quick", "sizes.factor=1.0000000000000002", "--dry-run"), "makes"),
    (("sweep", "quick", "sizes.factor=nan", "--dry-run"), "sizes.factor is nan"),
    (("sweep", "quick", "precision=nan", "--dry-run"), "precision is nan"),
    (("sweep", "quick", "precision=inf", "--dry-run"), "precision is inf"),
    (("sweep", "quick", "cap=1e999", "--dry-run"), "cap is inf"),
    (("sweep", "quick", "timeout=-inf", "--dry-run"), "timeout is -inf"),
    (("sweep", "quick", "fabric=emulated", "nodes=2", "slow_link=node1:nan", "--dry-run"), "slow_link"),
    (("sweep", "quick", "nodes=range(1,100000000000)"), "more than 100000 values"),
    (("sweep", "quick", "dtype=" + "[" * 500 + "]" * 500), "it nests too deeply"),
    (("sweep", "quick", "dtype={a:1}", "--dry-run"), "dtype"),
    (("sweep", "quick", "dtype=\udcff", "--dry-run"), "dtype"),
    (("sweep", "quick", "binding=explicit", "cpu_masks=0-999999999999", "--dry-run"), "cpu_masks"),
    (("sweep", "quick", "env.=1", "--dry-run"), "cannot read 'env.=1'"),
    (("sweep", "quick", "collective=all_to_allv", "splits=trace", "trace=trace", "--dry-run"), "trace"),
    (("sweep", "quick", "collective=all_to_allv", "splits=matrix", "matrix=binary", "--dry-run"), "binary"),
    # Scripts
    ((*SCRIPT, "script=binary"), "cannot read the script 'binary'"),
    ((*SCRIPT, "script=empty"), "the script 'empty' is empty"),
    ((*SCRIPT, "script=."), "cannot read the script"),
    ((*SCRIPT, "script=\udcff"), "cannot read"),
    ((*SCRIPT, "script=deep.json"), "it nests too deeply"),
    ((*SCRIPT, "script=long.json"), "the script is not JSON: Exceeds the limit"),
    ((*SCRIPT, "script=nan.json"), "NaN is not a finite number"),
    ((*SCRIPT, "script=inf.json"), "1e999 is not a finite number"),
    # Recipes
    *(
        ((command, f"{name}.yaml", option), said)
        for command, option in (("sweep", "--dry-run"), ("train", "--show-config"))
        for name, said in {
            "deep": "it nests too deeply, or refers to itself",
            "self": "",
            "binary": "binary.yaml",
            "list": "has no keys",
            "empty": "has no keys",
            "long": "Exceeds the limit",
            "none\udcff": "no recipe file",
        }.items()
    ),
    (("sweep", "inner.yaml", "--dry-run"), "refers to itself"),
    (("sweep", "interpolated.yaml", "--dry-run"), "interpolated.yaml"),
    (("tune", "self.yaml", "--dry-run"), "refers to itself"),
    # Numbers of tune
    (("tune", "quick", "budget=1e999", "--dry-run"), "budget=1e999"),
    (("tune", "quick", "budget=nan", "--dry-run"), "budget=nan"),
    (("tune", "quick", f"budget={LONG}h", "--dry-run"), "a time up to a year"),
    (("tune", "quick", "budget=0", "--dry-run"), "budget=0"),
    (("tune", "quick", "gain=nan", "--dry-run"), "gain=nan"),
    (("tune", "quick", "gain=1e999", "--dry-run"), "gain=1e999"),
    # Trainings
    (("train", "tiny", "link=x", "--show-config"), "link is set, but has no effect in this training"),
    (("train", "tiny", "message_overhead=5", "--show-config"), "message_overhead is set, but has no effect"),
    (("train", "tiny", "fabric=emulated", "link=x", "--show-config"), "link is 'x'"),
    (("train", "tiny", "lr=nan", "--show-config"), "lr is nan"),
    (("train", "tiny", "lr=1e999", "--show-config"), "lr is inf"),
    (("train", "tiny", f"steps={LARGE}", "--show-config"), "steps is below 2^63"),
    (("train", "tiny", "parts=1000000000000", "ranks_per_node=7", "--show-config"), "parts=1000000000000"),
    (("train", "tiny", "path=\udcff"), "cannot read"),
    (("train", "tiny", "profile=binary"), "binary"),
    (("train", "--resume", "\udcff"), "no run in"),
    (("train", "ab", "tiny", f"rounds={LONG}"), "rounds="),
    (("train", "ab", "tiny", "candidate=deep.json"), "deep.json"),
    (("train", "ab", "tiny", "candidate.schedule=pipelined", "candidate.chunks=2", "model=deep.json"), "deep.json"),
    # What compares, draws and reads
    (("compare", OPS, OPS, "--threshold", "nan"), "nan is not a finite number"),
    (("compare", OPS, OPS, "--threshold", "inf"), "'--threshold'"),
    (("compare", OPS, OPS, "--ranks", LONG), "'--ranks'"),
    (("compare", "deep.json", OPS), "it cannot be read"),
    (("compare", "long.json", OPS), "it cannot be read"),
    (("compare", "\udcff", OPS), "no run in"),
    (("plot", "binary"), "the format is unknown"),
    (("plot", OPS, "--link-rate", "inter=400Gbps"), "may mean bits or bytes"),
    (("compare", OPS, OPS, "--link-rate", "400gbit"), "names no class of links"),
    (("stragglers", "x", "--effect", "inf"), "'--effect'"),
    (("stragglers", "x", "--effect", "nan"), "nan is not a finite number"),
    (("stragglers", "x", "--effect", "1"), "'--effect'"),
    (("model", "\udcff"), "no run in"),
    (("export", "binary", "--format", "json"), "binary"),
    (("export", "deep.json", "--format", "json"), "not a whole JSON file"),
    (("export", "long.json", "--format", "json"), "not a whole JSON file"),
    (("exec", "--profile", "empty", "--", "true"), "not a whole JSON file"),
    (("topo", "--root", "nothing"), "nothing"),
    (("sweep", "--resume", "binary"), "no run in"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def _name(words: tuple[str, ...]) -> str:
    return " ".join(words).encode("ascii", "backslashreplace").decode()[:60]


@pytest.mark.parametrize(("words", "said"), CASES, ids=[_name(words) for words, _ in CASES])
def test_one_error_and_one_hint(
    words: tuple[str, ...], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert _main([*words]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines if line.strip()] == ["error", "hint"], err[:500]
    assert said in err and out == ""
    assert len(err) < 3000 and not (folder / "results").exists()
