"""The trainer's parts on one rank: rates, gradients, checkpoints, what is kept from others, and steps done again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu

from commbench.communicators.communicator import Communicator
from commbench.errors import CorruptFile, UsageError
from commbench.train import config as training
from commbench.train.config import TrainConfig
from moe_ref.data import text as data
from moe_ref.lm.config import flops_per_token, parameters
from moe_ref.training import build
from moe_ref.training.checkpoint import Box, Checkpoint, OtherRankFailed, latest, save
from moe_ref.training.grad_buckets import GradBuckets
from moe_ref.training.instrumented_comm import CommMonitor, InstrumentedComm
from moe_ref.training.optimizer import DistributedOptimizer, rate
from moe_ref.training.parallel_dims import ParallelDims
from moe_ref.training.resumed import check_same
from moe_ref.training.timers import Timers
from moe_ref.training.trainer import Diverged, Trainer
from tests.conftest import REPOSITORY
from tests.support.ranks import run_program

TINY = TrainConfig(
    layers=2, width=16, heads=2, hidden=24, context=16, moe_freq=2, experts=4, top_k=2, capacity="tutel",
    capacity_factor=1.25, batch=4, parts=2, steps=6, warmup=2, lr=0.01, val_sequences=4, ranks_per_node=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More would wait for each other where CPUs are busy, and cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    config = replace(TINY, steps=110, warmup=10, lr=2.0, lr_end=0.1)
    assert [rate(config, step) for step in (1, 5, 10)] == pytest.approx([0.2, 1.0, 2.0])
    assert rate(config, 60) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rate(config, 110) == rate(config, 200) == pytest.approx(0.2)
    assert rate(replace(config, warmup=0), 1) == pytest.approx(2.0, rel=1e-3)


def test_gradients_live_in_buckets_and_are_clipped_by_one_norm() -> None:
    replicated = [nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (5,), (2, 2))]
    wide = nn.Parameter(torch.ones(3, dtype=torch.float64))
    own = nn.Parameter(torch.ones(4))
    gradients = GradBuckets(
        {"replicated": [*replicated, wide], "cut": [], "expert": [own]}, ParallelDims(), bucket_bytes=70
    )
    assert [bucket.numel() for bucket in gradients.buckets] == [17, 4, 3], "by bytes, and apart by dtype"
    gradients.zero()
    total = sum(p.sum() * (i + 1) for i, p in enumerate([*replicated, wide, own]))
    cast(torch.Tensor, total).backward()  # type: ignore[no-untyped-call]
    assert replicated[0].grad is not None
    assert replicated[0].grad.data_ptr() == gradients.buckets[0].data_ptr(), "backward writes into the bucket"
    squares = float(gradients.squares())
    assert squares == pytest.approx(12 * 1 + 5 * 4 + 4 * 9 + 3 * 16 + 4 * 25)
    norm = math.sqrt(squares)
    gradients.clip(norm, 2 * norm)
    assert float(gradients.buckets[0][0]) == 1
    gradients.clip(norm, norm / 2)
    assert math.sqrt(float(gradients.squares())) == pytest.approx(norm / 2)


def boxes_of(whole: torch.Tensor, cuts: list[tuple[slice, ...]]) -> list[tuple[torch.Tensor, Box]]:
    return [(whole[cut], Box(tuple(whole.shape), tuple(each.start or 0 for each in cut))) for cut in cuts]


def written(parent: Path, step: int, ranks: list[dict[str, tuple[torch.Tensor, Box]]], keep: int = 2) -> Path:
    """As if so many ranks had saved: they go one after the other, the first of them once more at the end."""
    from moe_ref.training import checkpoint

    temporary, folder = parent / f".step-{step:08d}.tmp", parent / f"step-{step:08d}"
    checkpoint._fresh(temporary)
    for rank, tensors in enumerate(ranks):
        checkpoint._write(temporary, rank, tensors)
    checkpoint._finish(temporary, folder, step, {"config": "{}"}, len(ranks))
    return folder


def test_a_checkpoint_of_some_ranks_is_read_by_any_others(tmp_path: Path) -> None:
    whole = torch.arange(6 * 4 * 2.0).view(6, 4, 2)
    four = boxes_of(whole, [(slice(a, a + 3), slice(b, b + 2), slice(0, 2)) for a in (0, 3) for b in (0, 2)])
    scalar = torch.tensor(3.0)
    folder = written(tmp_path, 7, [{"w": piece} | ({"s": (scalar, Box((), ()))} if i == 0 else {})
                                   for i, piece in enumerate(four)])  # fmt: skip
    found = Checkpoint(folder)
    assert found.step == 7 and latest(tmp_path) == folder and (tmp_path / "latest").read_text() == "step-00000007\n"
    for start, length in (((0, 0, 0), (6, 4, 2)), ((2, 1, 0), (3, 2, 2)), ((5, 3, 1), (1, 1, 1))):
        ends = [s + n for s, n in zip(start, length, strict=True)]
        wanted = whole[tuple(slice(s, e) for s, e in zip(start, ends, strict=True))]
        assert torch.equal(found.read("w", Box((6, 4, 2), start), length), wanted)
    assert found.read("s", Box((), ()), ()) == scalar
    with pytest.raises(UsageError, match="another model: v is not in it"):
        found.read("v", Box((1,), (0,)), (1,))
    with pytest.raises(UsageError, match=r"another model: w has the shape \[6, 4, 2\]"):
        found.read("w", Box((6, 4, 3), (0, 0, 0)), (6, 4, 3))


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    piece = {"w": (torch.ones(4, 4), Box((4, 4), (0, 0)))}
    folder = written(tmp_path, 1, [piece])
    file = folder / "rank-0000.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(CorruptFile, match="where the manifest says"):
        Checkpoint(folder)
    file.write_bytes(b"\xff" * len(data))
    with pytest.raises(CorruptFile, match="rank-0000"):
        Checkpoint(folder).read("w", Box((4, 4), (0, 0)), (4, 4))
    half = written(tmp_path, 2, [{"w": (torch.ones(2, 4), Box((4, 4), (0, 0)))}])
    with pytest.raises(CorruptFile, match="do not make up the whole"):
        Checkpoint(half).read("w", Box((4, 4), (0, 0)), (4, 4))
    (half / "manifest.json").write_text("{")
    with pytest.raises(CorruptFile, match="manifest"):
        Checkpoint(half)
    (half / "manifest.json").unlink()
    assert latest(tmp_path) == folder, "without a manifest it does not count"


def test_saving_replaces_nothing_before_it_is_whole(tmp_path: Path) -> None:
    tensors = {"w": (torch.ones(3), Box((3,), (0,)))}

    def saved(step: int, all_succeeded: Callable[[bool], bool] = lambda fine: fine) -> Path:
        return save(tmp_path, step, tensors, {}, rank=0, ranks=1, all_succeeded=all_succeeded, keep=2)

    for step in (1, 2, 3):
        saved(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    with pytest.raises(OtherRankFailed, match="another rank could not write"):
        saved(4, all_succeeded=lambda fine: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    (tmp_path / ".step-00000003.old").mkdir()  # of a save that was killed between two names
    (tmp_path / ".step-00000003.old" / "rank-0000.safetensors").touch()
    saved(3)
    assert Checkpoint(tmp_path / "step-00000003").step == 3
    with pytest.raises(UsageError, match="the files of 1 of 2 ranks"):  # what a lagging network file system shows
        save(tmp_path, 4, tensors, {}, rank=0, ranks=2, all_succeeded=lambda fine: fine, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no checkpoint of step 1"):
        save(tmp_path / "file", 1, tensors, {}, rank=0, ranks=1, all_succeeded=lambda fine: fine, keep=1)


class Echo:
    """A communicator of two ranks of which the other one always has what this one has, times the call's number."""

    rank, size, device = 0, 2, torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[str] = []

    def all_to_all(self, out: torch.Tensor, inp: torch.Tensor, *, async_op: bool = False) -> None:
        self.calls.append("all_to_all")
        out.copy_(inp * len(self.calls))

    def exchange_counts(self, sent: list[int]) -> list[list[int]]:
        self.calls.append("exchange_counts")
        return [sent, [len(self.calls)] * len(sent)]


def test_what_came_from_others_is_given_again_and_not_asked_again() -> None:
    echo = Echo()
    monitor = CommMonitor(Timers(torch.device("cpu")))
    instrumented = InstrumentedComm(cast(Communicator, echo), monitor)
    first, again = monitor.contexts(stash=True)()
    inp, outs = torch.ones(4), [torch.empty(4) for _ in range(4)]
    with first:
        instrumented.all_to_all(outs[0], inp)
        counts = instrumented.exchange_counts([1, 2])
        instrumented.all_to_all(outs[1], inp)
    with again:
        instrumented.all_to_all(outs[2], inp)
        assert instrumented.exchange_counts([1, 2]) == counts
        instrumented.all_to_all(outs[3], inp)
    assert echo.calls == ["all_to_all", "exchange_counts", "all_to_all"]
    assert torch.equal(outs[0], outs[2]) and torch.equal(outs[1], outs[3]) and not torch.equal(outs[0], outs[1])
    assert monitor.calls == {"all_to_all": 2, "exchange_counts": 1} and monitor.a2a_bytes == 2 * 16
    assert monitor.stashed == {"all_to_all": 2, "exchange_counts": 1}
    instrumented.all_to_all(outs[2], inp)
    assert len(echo.calls) == 4, "outside of a block all is asked"
    redo_first, redo_again = monitor.contexts(stash=False)()
    with redo_first:
        instrumented.all_to_all(outs[0], inp)
    with redo_again:
        instrumented.all_to_all(outs[0], inp)
    assert len(echo.calls) == 6
    times = monitor.timers.read()
    assert times["a2a"] > 0 and times["exposed"] >= times["a2a"] and monitor.timers.read() == {}


def test_what_was_received_must_not_be_written_over() -> None:
    monitor = CommMonitor(Timers(torch.device("cpu")))
    instrumented = InstrumentedComm(cast(Communicator, Echo()), monitor)
    first, again = monitor.contexts(stash=True)()
    out = torch.empty(4)
    with first:
        instrumented.all_to_all(out, torch.ones(4))
    out.zero_()
    with again, pytest.raises(AssertionError, match="changed in place"):
        instrumented.all_to_all(torch.empty(4), torch.ones(4))


def test_what_is_still_where_it_came_to_is_not_copied() -> None:
    """In memory that a layer keeps for its exchanges the second pass finds what came to the first."""
    monitor = CommMonitor(Timers(torch.device("cpu")))
    instrumented = InstrumentedComm(cast(Communicator, Echo()), monitor)
    first, again = monitor.contexts(stash=True)()
    memory = torch.empty(4)

    def room() -> torch.Tensor:
        torch.autograd.graph.increment_version(memory)
        return memory.detach()

    with first:
        instrumented.all_to_all(room(), torch.ones(4))
        instrumented.all_to_all(torch.empty(4), torch.ones(4))
    held = memory.clone()
    with again:
        instrumented.all_to_all(room(), torch.ones(4))
        instrumented.all_to_all(torch.empty(4), torch.ones(4))
    assert torch.equal(memory, held) and monitor.stashed == {"all_to_all": 2}
    first, again = monitor.contexts(stash=True)()
    with first:
        instrumented.all_to_all(room(), torch.ones(4))
    room()  # of another pass, before this one has gone back
    with again, pytest.raises(AssertionError, match="changed in place"):
        instrumented.all_to_all(room(), torch.ones(4))


def steps(trainer: Trainer, until: int) -> list[float]:
    found = []
    while trainer.done < until:
        found.append(trainer.step()[0].loss)
    return found


@pytest.mark.parametrize("recompute", ["none", "redo", "stash"])
def test_a_run_that_goes_on_makes_the_steps_that_it_would_have_made(recompute: str, tmp_path: Path) -> None:
    config = replace(TINY, recompute=recompute, normalise="before", order="random")
    whole = Trainer(config)
    losses = steps(whole, 6)
    first = Trainer(config)
    assert steps(first, 3) == losses[:3]
    first.save(tmp_path)
    second = Trainer(replace(config, seed=0))
    second.load(Checkpoint(first.save(tmp_path)))
    assert second.done == 3 and steps(second, 6) == losses[3:]
    assert second.evaluate() == whole.evaluate()
    for (name, one), other in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_activations_on_the_host_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd saves goes through the host, but for parameters and small tensors; losses and weights are equal."""
    moved: list[int] = []
    kept = save_on_cpu.__init__

    def spied(self: save_on_cpu, *given: Any, **named: Any) -> None:
        kept(self, *given, **named)
        pack = self.pack_hook
        self.pack_hook = lambda tensor: (moved.append(tensor.nbytes), pack(tensor.clone()))[1]

    monkeypatch.setattr(save_on_cpu, "__init__", spied)
    wide = replace(TINY, width=64, hidden=128, context=64)
    plain, offloaded = Trainer(wide), Trainer(replace(wide, offload="activations"))
    assert steps(plain, 3) == steps(offloaded, 3)
    for (name, one), other in zip(plain.model.named_parameters(), offloaded.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert moved and min(moved) >= 1 << 16
    for other in ({"recompute": "redo"}, {"graphs": True}):
        with pytest.raises(UsageError, match="offload=activations with"):
            replace(TINY, offload="activations", **other)


def test_a_checkpoint_of_step_0_has_no_moments(tmp_path: Path) -> None:
    first = Trainer(TINY)
    folder = first.save(tmp_path)
    other = Trainer(TINY)
    other.load(Checkpoint(folder))
    assert other.done == 0 and steps(other, 2) == steps(first, 2)
    second = Trainer(replace(TINY, seed=1))
    with pytest.raises(UsageError, match="another training: seed=0, not 1"):
        check_same(second.config, Checkpoint(folder))


def test_a_checkpoint_goes_on_with_its_own_text_wherever_that_is(tmp_path: Path) -> None:
    text = data.sample().read_bytes()[:50_000]
    (tmp_path / "one.txt").write_bytes(text)
    (tmp_path / "moved.txt").write_bytes(text)
    (tmp_path / "other.txt").write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    first = Trainer(replace(TINY, path=str(tmp_path / "one.txt")))
    steps(first, 2)
    found = Checkpoint(first.save(tmp_path / "checkpoints"))
    moved = replace(TINY, path=str(tmp_path / "moved.txt"))
    check_same(moved, found)
    second = Trainer(moved)
    second.load(found)
    assert steps(second, 4) == steps(first, 4)
    manifest = found.folder / "manifest.json"
    about = json.loads(manifest.read_text())
    del about["about"]["text"]  # as earlier versions wrote it
    manifest.write_text(json.dumps(about))
    with pytest.raises(UsageError, match="another training: path="):
        check_same(moved, Checkpoint(found.folder))
    with pytest.raises(UsageError, match="was trained on a text of 50000 bytes"):
        Trainer(replace(TINY, path=str(tmp_path / "other.txt"))).load(found)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = Trainer(TINY).save(tmp_path)
    wider = replace(TINY, hidden=32, experts=8)
    with pytest.raises(UsageError, match="hidden=24, not 32") as caught:
        check_same(wider, Checkpoint(folder))
    assert "experts=4, not 8" in str(caught.value)
    with pytest.raises(UsageError, match="a checkpoint of another model"):
        Trainer(wider).load(Checkpoint(folder))
    check_same(replace(TINY, steps=99, ranks_per_node=2, schedule="pipelined"), Checkpoint(folder))


def test_the_gradient_is_the_mean_over_the_batch_however_it_is_cut() -> None:
    """Where nothing is dropped and no balance is asked for, parts change nothing."""
    config = replace(TINY, capacity="dropless", aux=0.0, clip=1e9, dtype="fp64", order="position")
    gradients = []
    for parts in (1, 4):
        trainer = Trainer(replace(config, parts=parts))
        trainer.step()
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(trainer.model.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)
    assert max(float(one.abs().max()) for one in gradients[0]) > 1e-3


def test_matrices_decay_and_vectors_do_not() -> None:
    """Without a gradient, decay is all that AdamW does: of experts' [E, H] and [E, D] nothing either."""
    config = replace(TINY, weight_decay=0.5, lr=0.1)
    model = build.build_model(config, ParallelDims())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    DistributedOptimizer(
        config, build.group_by_kind(model, build.param_placements(model, ParallelDims())), ParallelDims()
    ).step(0.1)
    shrunk = {name for name, parameter in model.named_parameters() if float(parameter.detach().mean()) < 0.96}
    matrices = (".weight", "weight_ED", "qkv_3ID", "w1_EDH", "w2_EHD", "embedding_VD", "positions_SD")
    names = [name for name, _ in model.named_parameters()]
    assert shrunk == {name for name in names if name.endswith(matrices) and "norm" not in name}


@pytest.mark.parametrize("name", training.names())
def test_recipes_are_models_that_fit_where_they_are_meant_for(name: str) -> None:
    """By what stays: fp32 weights, gradients and moments, and autocast's copies of the weights."""
    config, _ = training.compose([name])
    formula, ranks = parameters(build.lm_config(config)), config.ranks
    assert build.make_schedule(config).name == ("sequential" if config.tp == 1 else "tensor_parallel")
    states = 8 / ranks if config.zero else 8
    held = formula.replicated * (4 + 4 + states + 2) + formula.experts / ranks * (4 + 4 + 8 + 2)
    most = {"table1-scaled-2xh200": 141e9, "tiny": 1e9, "small": 1e9, "emulated-2x4": 1e9}.get(name, 80e9)
    assert held < 0.85 * most
    if name.startswith("table1-scaled"):
        assert held > 0.6 * most, "as much of it as fits"
        table1 = ("width", "heads", "hidden", "context", "moe_freq", "top_k")
        assert [getattr(config, key) for key in table1] == [4096, 32, 16384, 1024, 2, 2]


def test_what_a_step_tells() -> None:
    config = replace(TINY, peak_tflops=0.001, capacity_factor=0.25)
    trainer = Trainer(config)
    metrics, stopped = trainer.step(stop=True)
    assert stopped and metrics.step == 1 and metrics.loss == pytest.approx(math.log(256), abs=0.3)
    assert set(json.loads(metrics.to_json())) == {
        "step", "loss", "val_bits_per_byte", "tokens_per_s", "mfu", "a2a_us", "a2a_calls", "a2a_bytes",
        "exposed_comm_us", "exposed_comm_min_us", "exposed_moe_us", "drop_rate", "expert_balance",
        "memory_bytes", "profiled",
    }  # fmt: skip
    assert metrics.mfu == pytest.approx(metrics.tokens_per_s * flops_per_token(trainer.lm) / 1e9)
    assert metrics.a2a_bytes == 0 and metrics.val_bits_per_byte is None and metrics.memory_bytes > 1e6
    # Capacity: 2 x floor(0.25 x 32 / 4) = 4 slots of 4 experts for 64 choices of each part.
    assert metrics.drop_rate == pytest.approx(1 - 16 / 64, abs=0.13) and metrics.expert_balance is not None
    assert 1 <= metrics.expert_balance <= 4
    assert Trainer(replace(TINY, moe_freq=0)).step()[0].drop_rate is None
    assert trainer.evaluate() == pytest.approx(8, abs=0.4)


def test_a_loss_that_is_no_number_ends_it() -> None:
    trainer = Trainer(TINY)
    with torch.no_grad():
        trainer.model.embedding_VD.fill_(torch.nan)
    before = [p.clone() for p in trainer.model.blocks.parameters()]
    with pytest.raises(Diverged, match="step 1: the loss is nan"):
        trainer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.blocks.parameters(), strict=True))


def test_it_learns_the_sample() -> None:
    trainer = Trainer(replace(TINY, steps=200, batch=16, lr=0.01, width=32))
    steps(trainer, 200)
    assert trainer.evaluate() < trainer.text.entropy() - 0.2


@pytest.mark.parametrize(
    ("experts", "rank", "ranks", "tp", "found"),
    [
        (8, 1, 4, 1, (2, 2, 0, 1)), (4, 3, 4, 1, (3, 1, 0, 1)), (2, 5, 8, 1, (1, 1, 1, 4)), (1, 0, 1, 1, (0, 1, 0, 1)),
        (8, 5, 8, 4, (4, 4, 1, 4)), (2, 3, 4, 2, (1, 1, 1, 2)),
    ],
)  # fmt: skip
def test_experts_have_a_place(experts: int, rank: int, ranks: int, tp: int, found: Any) -> None:
    assert build.expert_shard(experts, ParallelDims(rank, ranks, rank % tp, tp)) == found


def test_experts_that_cannot_be_placed_are_refused() -> None:
    with pytest.raises(UsageError, match="experts=6 and 4 ranks"):
        build.expert_shard(6, ParallelDims(0, 4))
    with pytest.raises(UsageError, match="experts=3 do not divide among 2 groups of tp=2"):
        build.expert_shard(3, ParallelDims(0, 4, 0, 2))


def test_the_program_of_the_docs_runs(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/guide/training.md").read_text()
    (program,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    loss, bits = map(float, run_program(program, folder=tmp_path).split())
    assert loss < math.log(256) and bits < 8
