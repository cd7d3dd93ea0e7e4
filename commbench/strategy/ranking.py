"""Ranking: the best strategies of a space, how sure their order is, and what the others lose by."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from commbench.errors import UsageError
from commbench.output.grid import number
from commbench.stats import Floats
from commbench.strategy import space
from commbench.strategy.call_table import CallTable
from commbench.strategy.cluster import GpuCluster, LinkCost
from commbench.strategy.draws import DRAWS, Draws, Efficiency, draw
from commbench.strategy.gemm_table import GemmTable
from commbench.strategy.links import link_times
from commbench.strategy.memory import GIB, MemoryParts, memory
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import SCHEDULES, Setting, Settings
from commbench.strategy.space import Axes
from commbench.strategy.step_time import BINDS, StepTimes, step_time
from commbench.strategy.tagged import Tagged
from commbench.strategy.trainers import NAMES, runs
from commbench.strategy.workload import Workload

WITHIN = 1.5  # times the best middle: what is slower than that is best in no draw
MOST_DRAWN = 1000  # settings that meet all draws
MAY_BE_FASTER = 0.05  # chance of being faster than the first that keeps one in its group
# What the formulas miss of one layout of ranks and not of another, and of one way to run it: 95 % within these factors.
# Ratios of two layouts on B200 are 4 and 11 % off (docs/reference/planner.md).
_OF_LAYOUT, _OF_WAY = Tagged(1.0, "default", 1.1), Tagged(1.0, "default", 1.03)
_ANY = LinkCost(gbs=Tagged(1.0, "default"), alpha_us=Tagged(1.0, "default"))
_FARTHER = (2, 4, 8, 16, 32)  # times the nodes, at which a model that fits nowhere might


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One strategy with its numbers. us: of each draw; low, high: 5 and 95 %. slower: over the first, in the middle.

    needed_gib: of a GPU, tensors and what is beside them; margin_gib: what is left. p_best: part of draws in which it
    is the fastest. tied: whether it cannot be told from the first. line: the rank of the first that has its layout of
    ranks and its schedule; as_good: whether it cannot be told from that one.
    """

    rank: int
    setting: Setting
    us: float
    low_us: float
    high_us: float
    p_best: float
    p_faster: float
    binds: str
    parts_us: dict[str, float]
    memory_gib: float
    needed_gib: float
    margin_gib: float
    memory_parts_gib: dict[str, float]
    trainers: tuple[str, ...]
    tied: bool
    line: int
    as_good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A strategy that is not the first, and why. over: times the first one's step; None where it does not fit."""

    setting: Setting
    reason: str
    over: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """ranked: best first. losers: the best of what differs from the first in one size, and why it is not first; what
    cannot be told from the first is none of them.

    points: strategies that there are; fitting: that memory allows; drawn: that met all draws. current: what runs now.
    """

    ranked: list[Ranked]
    losers: list[Excluded]
    points: int
    fitting: int
    drawn: int
    current: Ranked | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def tied(self) -> list[Ranked]:
        """All that cannot be told from the first, itself included."""
        return [one for one in self.ranked if one.tied]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanProblem:
    """What is planned, on what, and what is known of it."""

    model: ModelShape
    work: Workload
    cluster: GpuCluster
    axes: Axes = field(default_factory=dict)
    trainer: str = "any"
    uneven: Tagged | None = None
    table: GemmTable | None = None
    calls: CallTable | None = None
    efficiency: Efficiency | None = None
    seed: int = 0
    host_gbs: float = 0.0  # between a GPU and its host's memory, each way; 0: nothing is swapped

    @property
    def skew(self) -> float:
        return 1.0 if self.uneven is None else self.uneven.value

    def draw(self, draws: int = DRAWS) -> Draws:
        return draw(self.cluster, efficiency=self.efficiency, uneven=self.uneven, draws=draws, seed=self.seed)

    def memory(self, settings: Settings) -> MemoryParts:
        """Return what settings take, with the fullest rank's rows."""
        share = np.sqrt(settings.ep / max(self.model.experts, 1)) * (settings.ep > 1)
        return memory(self.model, self.work, settings, skew=1 + (self.skew - 1) * share)

    def times(self, settings: Settings, draws: Draws) -> StepTimes:
        links = link_times(self.cluster, draws, seed=self.seed, table=self.calls)
        return step_time(self.model, self.work, self.cluster, settings, draws, table=self.table, links=links)

    def drawn_us(self, settings: Settings) -> Floats:
        """Return microseconds of a step by all draws, [d, n], with what formulas miss of each."""
        draws = self.draw()
        return self.times(settings, draws).us * _own(settings, len(draws), self.seed)

    def settings(self) -> Settings:
        return space.settings(self.model, self.work, self.cluster, self.axes, self.trainer)


def rank(problem: PlanProblem, *, current: Setting | None = None, most: int = MOST_DRAWN) -> Ranking:
    """Rank the strategies of a problem. Raises `UsageError` where sizes allow none, or none fits; it says what would.

    current: what runs now, whose rank is wanted whatever it is.
    """
    settings = problem.settings()
    if current is not None:
        settings = _with(settings, current)
    parts = problem.memory(settings)
    limit = problem.cluster.memory_gib.value * GIB
    fits = parts.needed <= limit
    if not fits.any():
        raise _fits_nowhere(problem, settings, parts)
    middle = problem.times(settings, problem.draw(1))
    times = middle.us[0]
    best = float(times[fits].min())
    kept = np.flatnonzero(fits & (times <= WITHIN * best))
    kept = kept[np.argsort(times[kept], kind="stable")][:most]
    mine = len(settings) - 1
    if current is not None and mine not in kept:
        kept = np.append(kept, mine)
    drawn = settings.take(kept)
    us = problem.drawn_us(drawn)
    allowed = fits[kept]
    order = np.argsort(np.where(allowed, np.median(us, axis=0), np.inf), kind="stable")
    winners = np.bincount(np.argmin(np.where(allowed, us, np.inf), axis=1), minlength=len(kept)) / len(us)
    first = order[0]
    faster = (us < us[:, [first]]).mean(axis=0)
    run = runs(drawn, problem.cluster.gpus)
    blocked = _blocked(settings, times, fits)
    tied = allowed & (faster >= MAY_BE_FASTER)
    tied[first] = True
    heads = _heads(drawn, order)
    as_good = (us < us[:, heads]).mean(axis=0) >= MAY_BE_FASTER
    rank_of = np.empty(len(kept), dtype=np.int64)
    rank_of[order] = np.arange(1, len(kept) + 1)
    ranked = []
    for its_rank, place in enumerate(order, 1):
        index = int(kept[place])
        low, mid, high = (float(value) for value in np.quantile(us[:, place], (0.05, 0.5, 0.95)))
        spent = {name: float(value[index]) for name, value in middle.parts.items()}
        needed = float(parts.needed[index]) / GIB
        ranked.append(Ranked(
            rank=its_rank, setting=settings[index], us=mid, low_us=low, high_us=high, p_best=float(winners[place]),
            p_faster=float(faster[place]), binds="memory" if blocked[index] else binds(spent), parts_us=spent,
            memory_gib=float(parts.total[index]) / GIB, needed_gib=needed,
            margin_gib=problem.cluster.memory_gib.value - needed,
            memory_parts_gib={name: float(getattr(parts, name)[index]) / GIB for name in parts.__dataclass_fields__},
            trainers=tuple(name for name in NAMES if run[name][place]),
            tied=bool(tied[place]), line=int(rank_of[heads[place]]), as_good=bool(allowed[place] and as_good[place]),
        ))  # fmt: skip
    now = next((one for one in ranked if one.setting == current), None)
    if now is not None and not fits[mine]:
        ranked.remove(now)  # it is last, and has no rank
    losing = np.ones(len(settings), dtype=bool)
    losing[kept[tied]] = False
    return Ranking(
        ranked=ranked, losers=_losers(settings, times, fits, losing, parts, middle, ranked[0], limit),
        points=len(settings), fitting=int(fits.sum()), drawn=len(kept), current=now,
    )  # fmt: skip


def binds(parts: dict[str, float]) -> str:
    """Return what a step is spent on most: `compute`, `inter`, `intra`, `bubble`, `launch`."""
    return max(BINDS, key=lambda name: parts[name] + (parts["optimizer"] if name == "compute" else 0.0))


def _with(settings: Settings, one: Setting) -> Settings:
    """Return the settings with another one as the last."""
    last = Settings.of([one])
    same = np.ones(len(settings), dtype=bool)
    for name in Settings.__dataclass_fields__:
        same &= getattr(settings, name) == getattr(last, name)[0]
    rest = settings.take(~same)
    columns = {name: np.append(getattr(rest, name), getattr(last, name)) for name in Settings.__dataclass_fields__}
    return Settings(**columns)


def _own(settings: Settings, draws: int, seed: int) -> Floats:
    """Return what formulas miss of each layout and each way to run it, [d, n]: the same for the same one."""
    factors = np.ones((draws, len(settings)))
    layouts = zip(settings.tp, settings.cp, settings.pp, settings.vpp, settings.ep, settings.etp, strict=True)
    ways = zip(settings.schedule, settings.exchange, settings.recompute, settings.micro_batch, settings.zero,
               strict=True)  # fmt: skip
    for kinds, of in ((layouts, _OF_LAYOUT), (ways, _OF_WAY)):
        known: dict[str, Floats] = {}
        for place, kind in enumerate(kinds):
            text = repr(tuple(map(int, kind)))
            if text not in known:
                rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
                known[text] = of.drawn(rng.standard_normal(draws))
            factors[:, place] *= known[text]
    return factors


def _heads(settings: Settings, order: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Return of each strategy the first in this order that has its layout of ranks and its schedule, [n]."""
    names = [one.name for one in SCHEDULES]
    firsts = np.array([names.index(name) for name in names])[settings.schedule]
    sizes = [getattr(settings, name) for name in ("tp", "cp", "pp", "ep", "etp")]
    _, line = np.unique(np.stack([*sizes, firsts], axis=1), axis=0, return_inverse=True)
    line = line.reshape(-1)
    head = np.empty(line.max() + 1, dtype=np.int64)
    head[line[order[::-1]]] = order[::-1]  # what is written last is the first
    return np.asarray(head[line])


def _blocked(settings: Settings, times: Floats, fits: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return of each whether the same layout of ranks would be faster, by 2 % at the least, if memory were larger."""
    layouts = np.stack([settings.tp, settings.cp, settings.pp, settings.ep, settings.etp], axis=1)
    _, which = np.unique(layouts, axis=0, return_inverse=True)
    which = which.reshape(-1)
    fastest = np.full(which.max() + 1, np.inf)
    np.minimum.at(fastest, which[~fits], times[~fits])
    return np.asarray(fastest[which] < 0.98 * times)


_COMPARED = ("tp", "cp", "pp", "ep", "etp", "micro_batch", "schedule", "exchange", "recompute")


def _losers(
    settings: Settings, times: Floats, fits: npt.NDArray[np.bool_], losing: npt.NDArray[np.bool_], parts: MemoryParts,
    middle: StepTimes, first: Ranked, limit: float,
) -> list[Excluded]:  # fmt: skip
    """Return, for each size, the best strategy that has another one than the first has, and why it is not first.

    losing: which are slower than the first, or do not fit, [n].
    """
    found: dict[int, Excluded] = {}
    best = Settings.of([first.setting])
    mine = first.parts_us
    for name in _COMPARED:
        other = losing & (getattr(settings, name) != getattr(best, name)[0])
        if not other.any():
            continue
        for faster_but in (True, False):
            at = np.flatnonzero(other & (~fits if faster_but else fits))
            if not len(at):
                continue
            place = int(at[np.argmin(times[at])])
            over = float(times[place]) / sum(mine.values())
            if place in found or (faster_but and over >= 1):
                continue
            if faster_but:
                reason = f"memory {parts.needed[place] / GIB:.0f} of {limit / GIB:.0f} GiB"
                found[place] = Excluded(setting=settings[place], reason=reason, over=None)
                continue
            more = {part: float(value[place]) - mine[part] for part, value in middle.parts.items()}
            part = max(more, key=lambda one: more[one])
            reason = f"{part} +{number(more[part] / 1e3)} ms"
            found[place] = Excluded(setting=settings[place], reason=reason, over=over)
    return list(found.values())


def _fits_nowhere(problem: PlanProblem, settings: Settings, parts: MemoryParts) -> UsageError:
    """Return the refusal: what is short by how much, and what would fit."""
    least = int(np.argmin(parts.needed))
    has = problem.cluster.memory_gib.value
    found = {name: float(getattr(parts, name)[least]) / GIB for name in parts.__dataclass_fields__}
    most = max(found, key=lambda name: found[name])
    need = float(parts.needed[least]) / GIB
    return UsageError(
        f"the model fits nowhere: {settings[least].label} needs {need:.1f} GiB of a GPU's {has:g}, "
        f"{found[most]:.1f} of it {most}",
        hint=_would_fit(problem, need),
    )


def _would_fit(problem: PlanProblem, need: float) -> str:
    limit = problem.cluster.memory_gib.value * GIB
    texts: list[str] = []
    links = {"inter": next(iter(problem.cluster.links.values()), _ANY), **problem.cluster.links}  # memory needs no rate
    for times in _FARTHER:
        nodes = problem.cluster.nodes * times
        cluster = dataclasses.replace(problem.cluster, nodes=nodes, links=links)
        more = dataclasses.replace(problem, cluster=cluster, axes={})
        try:
            if (more.memory(more.settings()).needed <= limit).any():
                texts.append(f"nodes={nodes}")
                break
        except UsageError:
            continue
    texts.append(f"memory_gb={int(np.ceil(need))}")
    if problem.work.state_bytes > 8:
        texts.append("state_bytes=8 (16-bit moments)")
    if any(name in problem.axes for name in ("zero", "recompute", "micro_batch", "tp", "pp", "ep")):
        texts.append("fewer keys of the space")
    return f"what would fit: {', or '.join(texts)}"
