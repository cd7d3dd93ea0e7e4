"""The trainer: a step, an evaluation, a checkpoint, on one rank or many. Files and processes are `rank`'s business.

A batch is cut into micro-batches (GShard's groups, arXiv 2006.16668, 3.1), each with its own capacity and its own
balance loss. Ranks take them in turn, W at a time, so that 4 ranks with one each and 2 ranks with two compute the same.
Whatever is drawn depends on the seed, the step and the micro-batch alone, so that a step can be done again, and
elsewhere.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import record_function

from commbench.communicators.communicator import Communicator
from commbench.communicators.wrapper import bare
from commbench.errors import CommbenchError, UsageError
from commbench.train.config import TrainConfig
from moe_ref.capturing import Uncapturable
from moe_ref.data import TextDataset
from moe_ref.lm.config import flops_per_token
from moe_ref.profiling import labelled
from moe_ref.training import build, checkpoint, checkpoint_reshard, offload, parallel_dims, step_graph
from moe_ref.training.checkpoint import Box, Checkpoint
from moe_ref.training.grad_buckets import GradBuckets
from moe_ref.training.metrics import ExpertLoads, Metrics, memory_bytes, peak_flops
from moe_ref.training.optimizer import MOMENTS, DistributedOptimizer, rate
from moe_ref.training.step_graph import StepGraph
from moe_ref.training.timers import Timers

_MODEL = "model"


class Diverged(CommbenchError):
    """The loss is no number any more."""

    exit_code = 1


class Trainer:
    """A training on one rank: its model, text and optimizer, and what measures them."""

    def __init__(
        self, config: TrainConfig, comm: Communicator | None = None, device: torch.device | None = None
    ) -> None:
        """comm: of all ranks; None: there is one. Collective. Raises `UsageError` for settings that cannot be."""
        self.config = config
        self.device = device or torch.device("cpu")
        self.timers = Timers(self.device)
        self._dims = parallel_dims.create(comm, config.tp, self.timers)
        self.rank, self.ranks, self.monitor = self._dims.rank, self._dims.size, self._dims.monitor
        # Of ranks with tokens of their own, that is of tensor-parallel groups.
        self._dp_rank, self._dp_size = self.rank // config.tp, self.ranks // config.tp
        self.micro_batches, self.micro_batch_size = config.cut(self._dp_size)
        build.make_schedule(config)  # which one rank alone has no use for
        self.text = TextDataset(None if config.path is None else Path(config.path), context=config.context,
                         validation=config.validation)  # fmt: skip
        self.model = build.build_model(config, self._dims, self.device)
        self.lm = self.model.config
        self._placements = build.param_placements(self.model, self._dims)
        named = build.group_by_kind(self.model, self._placements)
        self.optimizer = DistributedOptimizer(config, named, self._dims)
        self.gradients = GradBuckets({kind: [p for _, p in members] for kind, members in named.items()}, self._dims,
                                   int(config.bucket_mb * 2**20))  # fmt: skip
        self._validation = self.text.validation(config.val_sequences)
        peak = peak_flops(self.device, config.dtype) if config.peak_tflops is None else 1e12 * config.peak_tflops
        self.peak_flops = peak
        self.notes: list[str] = []  # for the user, that nobody has taken yet
        self.graph = self._step_graph()
        self.done = 0  # steps

    def _step_graph(self) -> StepGraph | None:
        """Make what captures steps, where the settings ask for it and nothing is against it."""
        if not self.config.graphs:
            return None
        if reason := step_graph.unsupported(self._dims, self.device, self.model):
            self.notes.append(step_graph.WITHOUT + reason)
            return None
        compute, shape = functools.partial(self._compute, step=None), (self.config.batch, self.config.context)
        return StepGraph(compute, self.model, self.optimizer, self.gradients.experts, shape)

    def step(self, *, stop: bool = False, eager: bool = False) -> tuple[Metrics, bool]:
        """Make one step. Collective. stop: whether this rank was asked to; what comes back is whether any was.

        eager: without graphs, whatever the settings say, for whoever looks into a step.
        Raises `Diverged` on all ranks where the loss or the gradient is not a finite number.
        """
        step, config = self.done + 1, self.config
        # A capture is no part of a step's time.
        graph = self.graph if self.graph is not None and not eager and self.graph.ready(self.device) else None
        began = time.perf_counter()
        self.timers.read()
        if self.monitor is not None:
            self.monitor.reset()
        self.model.train()
        inputs, targets = (one.to(self.device) for one in self.text.batch(config.batch, seed=config.seed, step=step))
        numbers = self._eagerly(inputs, targets, step) if graph is None else graph.replay(inputs, targets)
        totals = self._sum_over_ranks(torch.cat([numbers, torch.tensor([float(stop)], device=self.device).double()]))
        mean, norm = float(totals[0]) / (self.micro_batches * self.config.tp), math.sqrt(float(totals[1]))
        if not math.isfinite(mean + norm):
            raise Diverged(
                f"step {step}: the loss is {mean:g}, the norm of its gradient {norm:g}",
                hint="a smaller lr, a longer warmup, or dtype=fp32; the last checkpoint is from before",
            )
        self.gradients.clip(norm, config.clip)
        with record_function("train::optimizer"):
            (self.optimizer.step if graph is None else graph.update)(rate(config, step))
        self.done = step
        with record_function("train::read"):
            times = self.timers.read()  # waits for a GPU
        seconds = time.perf_counter() - began
        metrics = self._metrics(mean, seconds, times, *self._loads.read(totals[2:-1]))
        return metrics, bool(totals[-1])

    def _eagerly(self, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        if self.graph is not None:
            try:
                return self.graph.eager(inputs, targets)
            except Uncapturable as reason:
                self.graph = None
                self.notes.append(f"{step_graph.WITHOUT}{reason}")
        return self._compute(inputs, targets, step)

    def _compute(self, inputs: Tensor, targets: Tensor, step: int | None) -> Tensor:
        """Make the gradients of a batch; return the sums of losses and of squares, then what `ExpertLoads` counts.

        step: gates draw by it; None: they draw nothing.
        """
        self.gradients.zero()
        loads = self._loads = ExpertLoads(self.lm.moe_layers, self.lm.experts, self.device)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro_batch in range(self._dp_rank, self.micro_batches, self._dp_size):
            rows = slice(micro_batch * self.micro_batch_size, (micro_batch + 1) * self.micro_batch_size)
            seed = None if step is None else self._seed(step, micro_batch)
            with self._autocast(), offload.around(self.config.offload, self.model):
                result = self.model(inputs[rows], seed=seed, draws=step is not None, contexts=self._contexts())
                found = _cross_entropy(result.logits_BSV, targets[rows])
            loss += found.detach().double()
            loads.add(result.routings)
            with record_function("train::backward"):
                ((found + self.config.aux * sum(result.losses.values())) / self.micro_batches).backward()
        with record_function("train::gradients"):
            self.gradients.reduce()
        squares = self.gradients.squares().to(self.device)
        return torch.cat([torch.stack([loss, squares]), loads.numbers()])

    def _metrics(
        self, loss: float, seconds: float, times: dict[str, float], drop_rate: float | None, balance: float | None
    ) -> Metrics:
        """Return the line of the step that was made last, with the times of the slowest rank. Collective."""
        a2a, exposed, exposed_moe = (times.get(name, 0.0) for name in ("a2a", "exposed", "exposed_moe"))
        worst = self._max_over_ranks([a2a, exposed, -exposed, exposed_moe, seconds, memory_bytes(self.device)])
        tokens_per_s = self.config.batch * self.config.context / worst[4]
        peak, monitor = self.peak_flops, self.monitor
        return Metrics(
            step=self.done,
            loss=loss,
            val_bits_per_byte=None,
            tokens_per_s=tokens_per_s,
            mfu=None if peak is None else tokens_per_s * flops_per_token(self.lm) / (peak * self.ranks),
            a2a_us=worst[0],
            a2a_calls=0 if monitor is None else monitor.a2a_calls,
            a2a_bytes=0 if monitor is None else monitor.a2a_bytes,
            exposed_comm_us=worst[1],
            exposed_comm_min_us=-worst[2],
            exposed_moe_us=worst[3],
            drop_rate=drop_rate,
            expert_balance=balance,
            memory_bytes=int(worst[5]),
        )

    @torch.no_grad()
    def evaluate(self) -> float:
        """Compute bits a byte of the held-out text, the same each time, in micro-batches as a batch is. Collective."""
        self.model.eval()
        inputs, targets = self._validation
        each = len(inputs) // self.micro_batches
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        for micro_batch in range(self._dp_rank, self.micro_batches, self._dp_size):
            for first in range(0, each, self.micro_batch_size):
                begin = micro_batch * each
                rows = slice(begin + first, begin + min(each, first + self.micro_batch_size))
                with self._autocast():
                    result = self.model(inputs[rows].to(self.device), seed=self._seed(0, micro_batch))
                    found = _cross_entropy(result.logits_BSV, targets[rows].to(self.device))
                total += found.double() * inputs[rows].numel()
        return float(self._sum_over_ranks(total)[0]) / (inputs.numel() * self.config.tp) / math.log(2)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint below `folder`. Collective."""
        tensors: dict[str, tuple[Tensor, Box]] = {}
        states = self.optimizer.states()
        for name, parameter in self.model.named_parameters():
            box, kind = self._placements[name]
            first = {"replicated": self.rank == 0, "cut": self._dp_rank == 0, "expert": True}[kind]
            if first:
                tensors[f"{_MODEL}/{name}"] = parameter, box
            # With ZeRO-1 a state is on one rank; else all have what several share, and the first of them writes it.
            if name in states and (first or self.config.zero):
                for moment, tensor in states[name].items():
                    tensors[f"{moment}/{name}"] = tensor, box
        about = {"config": self.config.to_json(), "ranks": self.ranks, "text": self.text.identity()}
        return checkpoint.save(
            folder, self.done, tensors, about,
            rank=self.rank, ranks=self.ranks, all_succeeded=self._all_succeeded, keep=self.config.keep,
        )  # fmt: skip

    def load(self, found: Checkpoint) -> None:
        """Go on from a checkpoint that any number of ranks has written.

        The text's place and all draws follow from its step. Raises `UsageError` where it is of another model or text.
        """
        theirs, ours = found.about.get("text"), self.text.identity()
        if theirs not in (None, ours):  # older ones do not say
            raise UsageError(f"{found.folder} was trained on a text of {theirs['bytes']} bytes, digest "
                             f"{theirs['digest']}; {self.text.path} has {ours['bytes']}, {ours['digest']}",
                             hint="path=FILE, the same text; or start a new run")  # fmt: skip
        with torch.no_grad():
            moments = MOMENTS if found.step else ()  # before its first step an optimizer has none
            states: dict[str, dict[str, Tensor]] = {name: {} for name in self.optimizer.owned()}
            for kind in (_MODEL, *moments):
                for name, tensor in self._read_all(found, kind):
                    if kind == _MODEL:
                        self.model.get_parameter(name).copy_(tensor)
                    else:
                        states[name][kind] = tensor
        if found.step:
            self.optimizer.load(states, found.step)
        self.done = found.step
        if self.graph is not None:  # what it has captured updates states that are the optimizer's no more
            self.graph = self._step_graph()

    def close(self) -> None:
        """Close what the trainer made for itself; the communicator that it was given stays. Collective."""
        self._dims.close()

    def _read_all(self, found: Checkpoint, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Yield by name this rank's part of each parameter, or of a moment of those that it updates."""
        owned = {*self.optimizer.owned()}
        wanted = {
            name: (self._placements[name].box, tuple(parameter.shape), kind == _MODEL or name in owned)
            for name, parameter in self.model.named_parameters()
        }
        comm = None if self._dims.comms is None else bare(self._dims.comms.world)
        if self.config.resume_by == "reshard" and isinstance(comm, Communicator):
            yield from checkpoint_reshard.read(found, kind, wanted, comm, self.device, self._all_succeeded)
            return
        for name, (box, length, wants) in wanted.items():
            if wants:
                yield name, found.read(f"{kind}/{name}", box, length)

    def _contexts(self) -> Any:
        recompute = self.config.recompute
        if recompute == "none":
            return None
        if self.monitor is None:
            return lambda: (nullcontext(), labelled("train::redone"))
        return self.monitor.contexts(stash=recompute == "stash")

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.dtype != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _seed(self, step: int, micro_batch: int) -> int:
        """Return the seed of the gates' draws, the same in a tensor-parallel group: its ranks have the same tokens."""
        return ((self.config.seed * 1_000_003 + step) * 65_537 + micro_batch) % 2**48

    def _sum_over_ranks(self, numbers: Tensor) -> Tensor:
        """Sum fp64 numbers over ranks. Collective."""
        self._dims.all_reduce(numbers)
        return numbers.cpu()

    def _max_over_ranks(self, numbers: list[float]) -> list[float]:
        largest = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self._dims.all_reduce(largest, op="max")
        found: list[float] = largest.tolist()
        return found

    def barrier(self) -> None:
        """Wait until all ranks, and their devices, have come here. Collective."""
        self._max_over_ranks([0.0])

    def _all_succeeded(self, fine: bool) -> bool:
        return self._max_over_ranks([float(not fine)])[0] == 0


def _cross_entropy(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Compute nats a byte, in fp32 at least."""
    wide = torch.promote_types(logits_BSV.dtype, torch.float32)
    return functional.cross_entropy(logits_BSV.flatten(0, 1).to(wide), targets_BS.flatten())
