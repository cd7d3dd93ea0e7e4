"""What `commbench plan --emit` writes, read by torchtitan's and DeepSpeed's own configurations."""

from __future__ import annotations

import json

import pytest

from tests.conftest import REPOSITORY
from tests.support.installed_programs import needed

pytestmark = [pytest.mark.programs, pytest.mark.timeout(3600)]
needed("torchtitan", "deepspeed")
FOLDER = REPOSITORY / "tests/data/plan"


def test_torchtitan_reads_its_options() -> None:
    from torchtitan.config import ConfigManager
    from torchtitan.distributed.activation_checkpoint import FullAC

    words = (FOLDER / "torchtitan.txt").read_text().replace("\\", "").split()
    model = ["--module", "deepseek_v3", "--config", "deepseek_v3_debugmodel"]
    found = ConfigManager().parse_args([*model, *words])
    parallel = found.parallelism
    assert (parallel.data_parallel_shard_degree, parallel.tensor_parallel_degree) == (4, 2)
    assert (parallel.pipeline_parallel_degree, parallel.pipeline_parallel_microbatch_size) == (2, 2)
    assert (parallel.expert_parallel_degree, found.training.local_batch_size) == (8, 256)
    assert isinstance(found.activation_checkpoint, FullAC.Config)


@pytest.mark.parametrize(("name", "tp"), [("deepspeed.json", 2), ("deepspeed-deepep.json", 1)])
def test_deepspeed_takes_its_json(name: str, tp: int) -> None:
    from deepspeed.module_inject.auto_ep_config import parse_autoep_config, validate_autoep_config
    from deepspeed.runtime.config import DeepSpeedConfig

    text = json.loads((FOLDER / name).read_text())
    config = parse_autoep_config(text["expert_parallel"])
    validate_autoep_config(config, 16, 1, tp, 1, zero_stage=text["zero_optimization"]["stage"])
    assert config.enabled and config.autoep_size == 16
    whole = DeepSpeedConfig({**text, "train_batch_size": None, "gradient_accumulation_steps": 1})
    assert whole.zero_optimization_stage == text["zero_optimization"]["stage"]
