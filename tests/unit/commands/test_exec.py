"""`commbench exec`: the program has what the profile asks for, and nothing is claimed that is not so."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from commbench.binding import affinity
from commbench.cli import _main
from commbench.commands import exec as command
from commbench.errors import EnvironmentProblem
from commbench.profile import Choice, Profile, Scope
from commbench.profile.file import save
from commbench.rank_info import RankInfo
from tests.conftest import commbench, environment
from tests.support.export_goldens import HOSTILE, NCCL, sample

CPUS = sorted(os.sched_getaffinity(0))
SCOPE = Scope(id="s", transport="gloo", nodes=1, ranks_per_node=2)
SHOW = "import json, os; print(json.dumps([dict(os.environ), sorted(os.sched_getaffinity(0))]))"
several = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is nothing to choose")


def rank(number: int, size: int = 2, local_size: int = 2) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "TORCHELASTIC_RUN_ID": "x", "RANK": str(number), "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(number % local_size), "LOCAL_WORLD_SIZE": str(local_size),
    }  # fmt: skip


def profile(folder: Path, **values: Any) -> Path:
    path = folder / "p.json"
    scope = dataclasses.replace(SCOPE, **values)
    choice = Choice(scope="s", collective="all_to_all", min_bytes=0, max_bytes=None, algorithm="direct")
    save(Profile(scopes=[scope], choices=[choice]), path)
    return path


def run(
    path: Path, *words: str, env: dict[str, str] | None = None, pinned: set[int] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in a child that is forked, as starting so many interpreters would take long."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                for file, number in ((out, 1), (err, 2)):
                    os.dup2(file.fileno(), number)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
                os.chdir(path.parent)
                os.environ.update(environment(**(env or {})))
                if pinned:
                    os.sched_setaffinity(0, pinned)
                code = _main(["exec", "--profile", path.name, *words])
                sys.stdout.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    return subprocess.CompletedProcess(words, code, *told)


def test_the_program_has_the_settings(tmp_path: Path) -> None:
    path = profile(tmp_path, env={"NOTE": HOSTILE, "NCCL_PROTO": "Simple", "NCCL_ALGO": "unset", "BYTES": "\udcff"})
    mine = {"NCCL_PROTO": "LL", "NCCL_ALGO": "Tree", "BYTES": "\udcff", "OTHER": "stays"}
    done = run(path, "--", sys.executable, "-c", SHOW, env=mine)
    assert done.returncode == 0
    found, cpus = json.loads(done.stdout)
    assert found["NOTE"] == HOSTILE and found["NCCL_PROTO"] == "Simple" and found["BYTES"] == "\udcff"
    assert "NCCL_ALGO" not in found and found["OTHER"] == "stays" and cpus == CPUS
    assert (found["COMMBENCH_BINDING"], found["COMMBENCH_PROFILE"]) == ("none", str(path))
    assert found["COMMBENCH_BACKEND"] == "profile" and not {"COMMBENCH_SCOPE", "COMMBENCH_REDUCTIONS"} & found.keys()
    assert done.stderr == (
        "commbench exec: the profile's settings replace yours: NCCL_PROTO = 'Simple' (was 'LL'), "
        "NCCL_ALGO unset (was 'Tree')\n"
    )
    assert run(path, "--", "true", env={"NCCL_PROTO": "Simple"}).stderr == ""


def test_the_program_gets_its_words_as_they_are(tmp_path: Path) -> None:
    path = profile(tmp_path)
    words = ["$HOME", "a b", "--profile", "-c", "--", "", "*", "a\nb"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    for separator in (["--"], []):
        done = run(path, *separator, sys.executable, "-c", code, *words)
        assert json.loads(done.stdout) == words and done.stderr == ""


@pytest.mark.parametrize("code", [0, 1, 3, 130])
def test_exit_codes_are_those_of_the_program(tmp_path: Path, code: int) -> None:
    assert run(profile(tmp_path), "--", "sh", "-c", f"exit {code}").returncode == code


def test_it_becomes_the_program(tmp_path: Path) -> None:
    """The same process: signals reach it, and it ends by them. SIGPIPE is what it is without us."""
    path = profile(tmp_path)
    words = [sys.executable, "-m", "commbench", "exec", "--profile", str(path), "--"]
    child = subprocess.Popen([*words, "sh", "-c", "echo $$; kill -STOP $$"], stdout=subprocess.PIPE, text=True)
    assert child.stdout and int(child.stdout.readline()) == child.pid
    child.kill()
    assert child.wait(30) == -signal.SIGKILL
    child.stdout.close()
    assert run(path, "--", "sh", "-c", "kill -PIPE $$").returncode == -signal.SIGPIPE
    ignored = "import signal; print([signal.getsignal(s) for s in (signal.SIGINT, signal.SIGXFSZ)])"
    bare = subprocess.run([sys.executable, "-c", ignored], capture_output=True, text=True, check=True)
    assert run(path, "--", sys.executable, "-c", ignored).stdout == bare.stdout


def test_path_is_that_of_the_profile(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "only-there").write_text("#!/bin/sh\necho found\n")
    (folder / "only-there").chmod(0o755)
    path = profile(tmp_path, env={"PATH": f"{folder}:{os.environ['PATH']}"})
    assert run(path, "--allow-env", "PATH", "--", "only-there").stdout == "found\n"


def test_what_cannot_be_started_is_one_error(tmp_path: Path) -> None:
    path = profile(tmp_path)
    (tmp_path / "plain").write_text("echo\n")
    for name, text in (("no-shebang", "echo\n"), ("no-such-interpreter", "#!/nowhere/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for program, words in (
        ("no-such-program", "'no-such-program': it is in no folder of PATH ("),
        ("./no-such-program", "there is no such file"),
        ("./plain", "Permission denied"),
        (".", "Permission denied"),
        ("./no-shebang", "sh ./no-shebang"),
        ("./no-such-interpreter", "the interpreter that ./no-such-interpreter names is missing"),
        ("", "cannot start ''"),
    ):
        done = run(path, "--", program)
        assert (done.returncode, done.stdout) == (2, ""), program
        assert done.stderr.startswith("error: cannot start") and words in done.stderr, program
        assert len(done.stderr.splitlines()) <= 2
    done = run(path)
    assert done.returncode == 2 and "PROGRAM" in done.stderr
    done = commbench("exec", "--", "true", cwd=tmp_path)
    assert done.returncode == 2 and "--profile" in done.stderr


def test_which_scope_has_to_be_clear(tmp_path: Path) -> None:
    save(sample(), tmp_path / "p.json")
    done = run(tmp_path / "p.json", "--", "true")
    assert done.returncode == 2 and "has 5 scopes" in done.stderr and "--scope" in done.stderr
    done = run(tmp_path / "p.json", "--scope", "anywhere", "--", sys.executable, "-c", SHOW)
    assert json.loads(done.stdout)[0]["NOTE"] == HOSTILE


def test_an_emulated_fabric_is_not_pretended(tmp_path: Path) -> None:
    path = profile(tmp_path, fabric="4 x 1 Gb/s")
    done = run(path, "--", "true")
    assert done.returncode == 0 and "tuned on an emulated fabric (4 x 1 Gb/s), which this is not" in done.stderr
    assert run(path, "--", "true", env={"COMMBENCH_FABRIC": "4 x 1 Gb/s"}).stderr == ""


def test_a_cluster_around_the_program(tmp_path: Path) -> None:
    path = profile(tmp_path, ranks_per_node=1)
    cluster = ("fabric=emulated", "nodes=65", "ranks_per_node=1", "link=1gbit")
    done = run(path, *cluster, "--", "true")
    assert done.returncode == 2 and "nodes=65" in done.stderr and "2 to 64 nodes" in done.stderr
    done = run(path, *cluster, "--", "true", env=rank(0))
    assert done.returncode == 2 and "torchrun has started this process in one" in done.stderr
    done = run(path, "nodes=2", "--", "true")
    assert done.returncode == 2 and "it belongs to fabric=emulated" in done.stderr
    # Without `--`, and before one of the program's own, words are the program's.
    done = run(path, sys.executable, "-c", "import sys; print(sys.argv[1:])", "a=b", "--", "c")
    assert done.stdout == "['a=b', '--', 'c']\n"


def test_a_program_goes_by_one_profile(tmp_path: Path) -> None:
    path = profile(tmp_path)
    above = {"COMMBENCH_BACKEND": "profile", "COMMBENCH_PROFILE": "/other.json"}
    done = run(path, "--", "true", env=above)
    assert done.returncode == 2 and "two profiles: COMMBENCH_PROFILE is /other.json" in done.stderr
    assert run(path, "--", "true", env={**above, "COMMBENCH_PROFILE": str(path)}).returncode == 0
    words = ("--reductions", "--dry-run", "--", "true")
    done = run(path, *words, env={"COMMBENCH_BACKEND": "record"})
    told = done.stdout.splitlines()
    assert "COMMBENCH_BACKEND=record,profile" in told and "COMMBENCH_REDUCTIONS=1" in told
    assert "--reductions changes nothing: the profile has torch's own call for all sums" in done.stderr
    for collective, algorithm, changes in (("all_to_all", "mine", False), ("all_reduce", "direct", False),
                                           ("all_reduce", "mine", True), ("reduce_scatter", "mine", True)):  # fmt: skip
        choice = Choice(scope="s", collective=collective, min_bytes=0, max_bytes=None, algorithm=algorithm)
        assert command._chooses_sums(Profile(scopes=[SCOPE], choices=[choice])) == changes, choice
    assert (
        "AUTOLOAD=0: torch will not load" in run(path, "--", "true", env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}).stderr
    )


# Binding


@several
def test_each_rank_has_its_cpus(tmp_path: Path) -> None:
    path = profile(tmp_path, binding="explicit", cpu_masks=f"{CPUS[1]};{CPUS[0]}", binding_memory=False)
    for number, cpu in ((0, CPUS[1]), (1, CPUS[0])):
        done = run(path, "--", sys.executable, "-c", SHOW, env=rank(number))
        assert done.returncode == 0, done.stderr
        found, cpus = json.loads(done.stdout)
        assert cpus == [cpu] and found["COMMBENCH_BINDING"] == "explicit"


def test_memory_too(tmp_path: Path) -> None:
    if affinity.unsupported_memory_policy():
        pytest.skip(affinity.unsupported_memory_policy())
    path = profile(tmp_path, binding="block")
    code = "from commbench.binding import affinity; print(affinity.read().memory)"
    assert run(path, "--", sys.executable, "-c", code, env=rank(0)).stdout == "bind\n"
    path = profile(tmp_path, binding="block", binding_memory=False)
    assert run(path, "--", sys.executable, "-c", code, env=rank(0)).stdout == "default\n"


@several
def test_a_pinned_rank_is_neither_obeyed_nor_overruled(tmp_path: Path) -> None:
    path = profile(tmp_path, binding="explicit", cpu_masks=f"{CPUS[0]};{CPUS[1]}", binding_memory=False)
    done = run(path, "--", "true", env=rank(0), pinned={CPUS[1]})
    assert done.returncode == 2
    assert f"wants CPUs {CPUS[0]} for a rank that was started pinned to {CPUS[1]}" in done.stderr
    assert "--bind-to none" in done.stderr


def test_a_binding_that_did_not_happen_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = profile(tmp_path, binding="block", binding_memory=False)
    found = dataclasses.replace(affinity.read(), cpus=(999,))
    monkeypatch.setattr(affinity, "read", lambda: found)
    monkeypatch.setattr(os, "execvpe", lambda *words: pytest.fail("it was started"))
    monkeypatch.setattr(command, "detect", lambda environ: RankInfo(rank=0, size=2, local_rank=0, local_size=2,
                                                                    launcher="torchrun"))  # fmt: skip
    with pytest.raises(EnvironmentProblem, match="did not take effect"):
        command.run(path, ["true"], wanted="", dry_run=False)


@pytest.mark.parametrize("policy", ["pci", "block", "round_robin", "worst", "explicit"])
def test_without_a_launcher_there_is_no_rank_to_bind(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = profile(tmp_path, binding=policy, cpu_masks="0;1" if policy == "explicit" else "")
    monkeypatch.setattr(os, "execvpe", lambda *words: pytest.fail("it was started"))
    monkeypatch.setattr(command, "detect", lambda environ: None)
    assert _main(["exec", "--profile", str(path), "--", "mpiexec", "./program"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert f"binding={policy} has a place for each rank" in error and "no launcher has started it" in error
    inner = f"commbench exec --profile {shlex.quote(str(path))} -- PROGRAM"
    assert f"torchrun --nproc-per-node=2 --no-python {inner}" in hint and f"mpiexec -n 2 {inner}" in hint


def test_another_number_of_ranks_is_another_binding(tmp_path: Path) -> None:
    path = profile(tmp_path, binding="block", binding_memory=False)
    done = run(path, "--", "true", env=rank(0, 4, 4))
    assert done.returncode == 2
    assert "is for 2 ranks on each host, and torchrun has started 4 on this one" in done.stderr
    # One host stands for all nodes.
    path = profile(tmp_path, binding="block", binding_memory=False, nodes=2)
    assert run(path, "--", "true", env=rank(0, 4, 4)).returncode == 0
    path = profile(tmp_path, binding="block", binding_memory=False, ranks_per_node=None)
    assert run(path, "--", "true", env=rank(0, 4, 4)).returncode == 0


def test_an_unknown_launcher_matters_only_where_ranks_are_bound(tmp_path: Path) -> None:
    assert run(profile(tmp_path), "--", "true", env={"PMI_RANK": "3"}).returncode == 0
    done = run(profile(tmp_path, binding="block"), "--", "true", env={"PMI_RANK": "3"})
    assert done.returncode == 2 and "an unknown launcher" in done.stderr


def test_one_rank_of_a_host_speaks(tmp_path: Path) -> None:
    path = profile(tmp_path, env={"NCCL_PROTO": "Simple"})
    told = [run(path, "--", "true", env={**rank(number), "NCCL_PROTO": "LL"}).stderr for number in (0, 1)]
    assert "NCCL_PROTO" in told[0] and told[1] == ""


def test_dry_run(tmp_path: Path) -> None:
    path = profile(
        tmp_path, env={"A": "it's", "B": "unset"}, binding="explicit", cpu_masks=f"{CPUS[0]};{CPUS[-1]}",
        binding_memory=False,
    )  # fmt: skip
    ours = [f"COMMBENCH_PROFILE={shlex.quote(str(path))}", "COMMBENCH_BACKEND=profile"]
    head = ["unset B", """A='it'"'"'s'""", "COMMBENCH_BINDING=explicit", *ours]
    places = [f"binding=explicit, local rank {number}: CPUs {cpu}, memory as it was: list {number + 1} of cpu_masks"
              for number, cpu in enumerate((CPUS[0], CPUS[-1]))]  # fmt: skip
    done = run(path, "--dry-run", "--", "no-such-program", "a b", env=rank(1))
    assert (done.returncode, done.stdout.splitlines()) == (0, [*head, places[1], "no-such-program 'a b'"])
    done = run(path, "--dry-run", "--", "true")
    assert done.returncode == 2 and "no launcher has started it" in done.stderr, "it would not be started either"
    above = ["unset B", """A='it'"'"'s'""", "COMMBENCH_SCOPE=s", *ours]
    assert done.stdout.splitlines() == [*above, *places, "true"]
    done = run(path, "--dry-run", "--", "torchrun", "train.py")
    assert (done.returncode, done.stdout.splitlines()) == (0, [*above, *places, "torchrun train.py"])
    done = run(profile(tmp_path), "--dry-run", "--", "true")
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["binding=none: as it is started", "true"])


def test_a_scope_that_exec_has_set_up_fits(tmp_path: Path) -> None:
    """What exec sets is what `profile.scope` looks for."""
    from commbench.profile.scope import Here, differences

    save(Profile(scopes=[dataclasses.replace(NCCL, binding="none")], choices=[]), tmp_path / "p.json")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    done = run(tmp_path / "p.json", "--", sys.executable, "-c", code, env={"NCCL_P2P_NET_CHUNKSIZE": "1"})
    scope = dataclasses.replace(NCCL, binding="none")
    here = Here(transport="nccl", nodes=2, ranks_per_node=8, versions=scope.versions, gpu=scope.gpu,
                environ=json.loads(done.stdout))  # fmt: skip
    assert differences(scope, here) == []
