"""Variables that load code, from a profile, a recipe or a run of others: refused unless the user says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from commbench.errors import UsageError
from commbench.profile import Profile, Scope, file
from commbench.variables import loads_code, refuse_code
from tests.conftest import here, only_run
from tests.support import forked_command


def words(text: str) -> set[str]:
    return set(text.split())


LOADING = words(
    """
    LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT DYLD_INSERT_LIBRARIES GLIBC_TUNABLES GCONV_PATH PATH HOME SHELL ENV BASH_ENV
    BASH_FUNC_ls SHELLOPTS PS4 PYTHONPATH PYTHONSTARTUP PYTHONHOME PYTHONWARNINGS PYTHONPYCACHEPREFIX PERL5LIB RUBYOPT
    NODE_OPTIONS JAVA_TOOL_OPTIONS MPLBACKEND TRITON_CACHE_DIR TRITON_PTXAS_PATH TORCH_EXTENSIONS_DIR
    TORCHINDUCTOR_CACHE_DIR CUDA_INJECTION64_PATH NVTX_INJECTION64_PATH OMP_TOOL_LIBRARIES MPI4PY_LIBMPI
    NCCL_NET_PLUGIN NCCL_TUNER_PLUGIN NCCL_PROFILER_PLUGIN NCCL_CONF_FILE UCX_MODULE_DIR UCC_COMPONENT_PATH
    FI_PROVIDER_PATH OMPI_MCA_mca_base_component_path OMPI_MCA_mca_component_path OMPI_MCA_mca_base_param_files
    OMPI_MCA_plm_rsh_agent PMIX_MCA_mca_base_component_path PRTE_MCA_prte_tmpdir_base OPAL_PREFIX PMIX_INSTALL_PREFIX
    I_MPI_ROOT I_MPI_HYDRA_BOOTSTRAP_EXEC HYDRA_LAUNCHER_EXEC I_MPI_PMI_LIBRARY NCCL_DEBUG_FILE NCCL_TOPO_DUMP_FILE
    NCCL_GRAPH_DUMP_FILE CC CXX COMMBENCH_ALGORITHMS
    """
)
# What tunings are about, and what says where rather than what.
HARMLESS = words(
    """
    NCCL_ALGO NCCL_PROTO NCCL_MIN_NCHANNELS NCCL_MIN_P2P_NCHANNELS NCCL_BUFFSIZE NCCL_IB_HCA NCCL_IB_GID_INDEX
    NCCL_IB_SPLIT_DATA_ON_QPS NCCL_SOCKET_IFNAME NCCL_NET_GDR_LEVEL NCCL_P2P_LEVEL NCCL_TOPO_FILE NCCL_CROSS_NIC
    NCCL_NET NCCL_DEBUG NCCL_NVLS_ENABLE GLOO_SOCKET_IFNAME OMP_NUM_THREADS MKL_NUM_THREADS UCX_TLS UCX_NET_DEVICES
    UCX_RNDV_THRESH FI_PROVIDER OMPI_MCA_btl OMPI_MCA_pml OMPI_MCA_coll_tuned_alltoall_algorithm
    OMPI_MCA_btl_tcp_if_include MPIR_CVAR_ALLTOALL_INTRA_ALGORITHM I_MPI_FABRICS I_MPI_ADJUST_ALLTOALL
    CUDA_VISIBLE_DEVICES CUDA_DEVICE_MAX_CONNECTIONS TORCH_NCCL_ASYNC_ERROR_HANDLING PYTHONHASHSEED COMMBENCH_CONTROL
    MALLOC_ARENA_MAX FOO
    """
)


def test_what_loads_code() -> None:
    assert {name for name in LOADING | HARMLESS if loads_code(name)} == LOADING


def test_what_the_environment_has_already_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "mine.so")
    refuse_code({"LD_PRELOAD": "mine.so", "NCCL_ALGO": "Ring", "BASH_ENV": "unset"}, "p.json", ())
    for value in ("theirs.so", "unset"):
        with pytest.raises(UsageError, match=f"p.json sets LD_PRELOAD={value}") as caught:
            refuse_code({"LD_PRELOAD": value, "ENV": "x"}, "p.json", ("FOO",))
        assert caught.value.hint.endswith("--allow-env LD_PRELOAD --allow-env ENV")
        refuse_code({"LD_PRELOAD": value, "ENV": "x"}, "p.json", ("LD_PRELOAD", "ENV"))


def scope(**more: Any) -> Scope:
    values: dict[str, Any] = {"transport": "gloo", "nodes": 1, "ranks_per_node": 1, "env": {"BASH_ENV": "/tmp/theirs"}}
    return Scope(id="one", **{**values, **more})


@pytest.mark.parametrize(
    "words",
    [
        ("exec", "--profile", "p.json", "--dry-run", "--", "true"),
        *(("export", "p.json", "--format", name) for name in ("env", "json", "mpiexec", "srun", "torchrun")),
        ("train", "tiny", "profile=p.json", "ranks_per_node=1", "steps=1", "save_every=null"),
        ("train", "ab", "tiny", "candidate=p.json", "ranks_per_node=1", "rounds=1"),
        ("sweep", "mine.yaml"),
        ("sweep", "mine.yaml", "--dry-run"),
        ("tune", "mine.yaml"),
    ],
    ids=lambda words: "-".join(words[:2] + words[-1:]),
)
def test_every_way_by_which_it_would_get_into_a_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    file.save(Profile(scopes=[scope()], choices=[]), tmp_path / "p.json")
    (tmp_path / "mine.yaml").write_text("transport: scripted\nenv: {BASH_ENV: /tmp/theirs}\n")
    result = here(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    error, hint = result.stderr.splitlines()[-2:]
    assert "sets BASH_ENV=/tmp/theirs: programs load code from there" in error
    assert hint == "hint: if you trust that: --allow-env BASH_ENV"
    assert not [*tmp_path.glob("results/*")], "before there is a run"


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    file.save(Profile(scopes=[scope(binding="block")], choices=[]), tmp_path / "p.json")
    allowed = ("--allow-env", "BASH_ENV")
    told = forked_command.run("exec", "--profile", "p.json", "--dry-run", *allowed, "--", "true", cwd=tmp_path)
    assert "BASH_ENV=/tmp/theirs" in told.stdout
    assert here("export", "p.json", "--format", "srun", "--out", "start", *allowed, cwd=tmp_path).returncode == 0
    assert "--allow-env BASH_ENV --" in (tmp_path / "start").read_text(), "which exec will ask again"


def test_what_is_typed_is_the_users_own_and_a_run_of_others_is_not(tmp_path: Path) -> None:
    words = ("quick", "transport=scripted", "algorithm=direct", "-b", "1K", "-e", "1K", "launches=1", "iters=3",
             "ranks_per_node=2", "nodes=1", "--no-plots")  # fmt: skip
    assert here("sweep", *words, f"env.ENV={tmp_path}/x", cwd=tmp_path).returncode == 0
    run = only_run(tmp_path / "results")
    refused = here("sweep", "--resume", str(run), cwd=tmp_path)
    assert refused.returncode == 2 and "--allow-env ENV" in refused.stderr
    assert here("sweep", "--resume", str(run), "--allow-env", "ENV", "--no-plots", cwd=tmp_path).returncode == 0


def test_a_training_of_others_goes_on_with_no_code_of_theirs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "manifest.json").touch()
    config = here("train", "tiny", "--show-config", cwd=tmp_path).stdout
    values = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in config.splitlines())}
    (run / "config.json").write_text(json.dumps(values))
    about = {"format_version": "train-1", "env": {"LD_AUDIT": "x"}}
    about |= dict.fromkeys(("machine_text", "commbench_version", "started"), "")
    (run / "run.json").write_text(json.dumps(about))
    result = here("train", "--resume", str(run), cwd=tmp_path)
    assert result.returncode == 2 and "sets LD_AUDIT=x" in result.stderr
    assert "LD_AUDIT" not in os.environ
