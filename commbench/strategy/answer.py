"""The answer of a plan: one sentence, a table, why others lose, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from commbench.output.answer.claims import Answer
from commbench.output.answer.words import count
from commbench.output.grid import AS_FITS, Column, TableStyle, folded, grid, number
from commbench.strategy.choices import MOST_SHOWN, PlanChoice, choices
from commbench.strategy.ranking import PlanProblem, Ranked, Ranking

_MOST_LOSERS = 5
_SHORT = {"compute": "compute", "inter": "links between nodes", "intra": "links inside nodes",
          "bubble": "the pipeline's bubble", "launch": "launching kernels", "memory": "memory",
          "optimizer": "the optimizer"}  # fmt: skip


def tokens_per_s(problem: PlanProblem, one: Ranked) -> float:
    """Return tokens of a second and GPU."""
    return problem.work.batch * problem.model.context / one.us * 1e6 / problem.cluster.gpus


def mfu(problem: PlanProblem, one: Ranked) -> float:
    """Return the part of the peak that the model's own arithmetic makes."""
    return tokens_per_s(problem, one) * problem.model.flops_per_token / (problem.cluster.peak_tflops.value * 1e12)


def columns(problem: PlanProblem, chances: Mapping[int, float] | None = None) -> list[Column[Ranked]]:
    """Return the columns of the table. chances: of ranks that stand for lines, in place of their own."""
    of_line = chances or {}

    def size(name: str, *, once: bool = True) -> Column[Ranked]:
        return Column(name=name, text=lambda row: str(getattr(row.setting, name)), once=once)

    return [
        Column(name="rank", text=lambda row: str(row.rank)),
        *(size(name) for name in ("tp", "cp", "pp", "vpp", "dp", "ep", "etp")),
        Column(name="mb", text=lambda row: str(row.setting.micro_batch)),
        Column(name="schedule", text=lambda row: row.setting.schedule.label, left=True, once=True),
        Column(name="exchange", text=lambda row: row.setting.exchange, left=True, once=True),
        Column(name="zero", text=lambda row: str(row.setting.zero), once=True, goes=3),
        Column(name="recompute", text=lambda row: row.setting.recompute, left=True, once=True, heading="redo"),
        Column(name="step_ms", text=lambda row: number(row.us / 1e3)),
        Column(name="interval", text=lambda row: f"[{_ms(row.low_us)}-{_ms(row.high_us)}]", heading="[5-95%]"),
        Column(name="tokens", text=lambda row: f"{tokens_per_s(problem, row):.0f}", heading="tok/s", goes=2),
        Column(name="mfu", text=lambda row: f"{100 * mfu(problem, row):.0f}%", goes=1),
        Column(name="gib", text=lambda row: f"{row.memory_gib:.1f}", heading="GiB"),
        Column(name="margin", text=lambda row: f"{row.margin_gib:.1f}", goes=4),
        Column(name="p_best", text=lambda row: f"{of_line.get(row.rank, row.p_best):.2f}", heading="P"),
        Column(name="binds", text=lambda row: row.binds, left=True),
    ]


def _ms(us: float) -> str:
    ms = us / 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def table(problem: PlanProblem, ranking: Ranking, top: int | None, look: TableStyle = AS_FITS) -> list[str]:
    """Return the lines of the table: what is planned, the best, why others lose.

    top: so many strategies, each with a row of its own; None: a few rows, each a layout and a schedule with all that
    is as good in it.
    """
    model, cluster = problem.model, problem.cluster
    lines = folded(f"# {model.name}: {model.parameters / 1e9:.3g} billion parameters, "
                   f"{model.active_parameters / 1e9:.3g} of a token; {problem.work.batch} sequences of {model.context} "
                   f"tokens a step", first="", more="#   ")  # fmt: skip
    lines += folded(f"# {cluster.nodes} x {cluster.gpus_per_node} GPUs; {links_text(problem)}", first="", more="#   ")
    lines += folded(f"# {ranking.points} strategies, {ranking.fitting} fit in memory, "
                    f"{ranking.drawn} met all draws", first="", more="#   ")  # fmt: skip
    rows = choices(ranking.ranked)[:MOST_SHOWN] if top is None else []
    shown = [one.best for one in rows] or list(ranking.ranked[:top])
    now = ranking.current
    if now is not None and now not in shown:
        shown.append(now)
    laid = grid(columns(problem, {one.best.rank: one.p_best for one in rows}), shown, look)
    lines += [text for note in laid.notes for text in folded(note)]
    lines += laid.framed(look)
    for one in rows:
        lines += folded(one.text) if one.alike else []
    losers = sorted(ranking.losers, key=lambda one: (one.over is None, one.over or 0.0))
    lines += ["# slower, and by what:"] if losers else []
    for loser in losers[:_MOST_LOSERS]:
        over = "does not fit" if loser.over is None else f"{loser.over:.2f}x"
        lines += folded(f"{loser.setting.label}: {over}, {loser.reason}", "#   ", "#     ")
    return lines


def links_text(problem: PlanProblem) -> str:
    """Return what links cost, and who says so."""
    cluster = problem.cluster
    if cluster.costs is not None:
        return f"links as measured: {cluster.costs.text}"
    parts = []
    for link, where, of in (("intra", "inside nodes", "of a GPU"), ("inter", "between nodes", "of a node")):
        if link in cluster.links and (link == "intra" or cluster.nodes > 1):
            gbs = cluster.links[link].gbs
            parts.append(f"{gbs.value:g} GB/s {of} {where} ({gbs.source})")
    return ", ".join(parts) or "no links"


def answer(
    problem: PlanProblem, ranking: Ranking, commands: Sequence[str], notes: Sequence[str] = ()
) -> Answer:  # fmt: skip
    """Return the sentence, and what would tell the group apart. commands: one for each of the group, or fewer."""
    first = ranking.ranked[0]
    has = problem.cluster.memory_gib.value
    sentences = [
        f"{first.setting.label} is best: {number(first.us / 1e3)} ms a step "
        f"[{_ms(first.low_us)}-{_ms(first.high_us)}], "
        f"{tokens_per_s(problem, first):.0f} tokens/s a GPU, {100 * mfu(problem, first):.0f} % of the peak, "
        f"{first.needed_gib:.1f} of {has:g} GiB; {_SHORT[first.binds]} binds"
    ]
    rows = [one for one in choices(ranking.ranked) if one.tied]
    others = [one for one in rows if one.best is not first]
    mine = next(one for one in rows if one.best is first)
    here = f"; what differs there does not matter: {mine.differs}" if mine.alike else ""
    sentences.append(f"that layout and schedule is the fastest in {100 * mine.p_best:.0f} % of draws{here}")
    if others:
        named = "; ".join(f"{_line(one)} ({one.best.us / first.us:.2f}x)" for one in others[: MOST_SHOWN - 1])
        more_of = f", and {count(len(others) - MOST_SHOWN + 1, 'other')}" if len(others) >= MOST_SHOWN else ""
        sentences.append(f"{count(len(others), 'other layout')} may be as good: {named}{more_of}")
    else:
        sentences.append("no other is as good")
    if (now := ranking.current) is not None:
        where = f"is rank {now.rank}" if now.margin_gib >= 0 else f"needs {now.needed_gib:.1f} of {has:g} GiB"
        sentences.append(f"what you run now {where}: {now.us / first.us:.2f}x the best one's step")
    sentences += notes
    more: dict[str, Any] = {
        "group": [one.rank for one in group(ranking)], "tied": len(ranking.tied), "points": ranking.points,
        "choices": [_as_dict(one) for one in rows],
        "fitting": ranking.fitting, "drawn": ranking.drawn, "commands": list(commands),
        "losers": [{"strategy": one.setting.label, "reason": one.reason, "over": one.over} for one in ranking.losers],
        "current": None if now is None else {"rank": now.rank, "over": now.us / first.us},
    }  # fmt: skip
    return Answer(sentences=sentences, step=_step(problem, others), command=commands[0] if commands else "", more=more)


def group(ranking: Ranking) -> list[Ranked]:
    """Return those to measure, a few: the best of each line that cannot be told from the first."""
    return [one.best for one in choices(ranking.ranked) if one.tied][:MOST_SHOWN]


def _line(one: PlanChoice) -> str:
    """Return the sizes and the schedule of a line, without what does not matter in it."""
    its = one.best.setting
    sizes = [f"{name}{value}" for name in ("tp", "cp", "pp", "ep", "etp") if (value := getattr(its, name)) > 1]
    return " ".join([*sizes, its.schedule.name])


def _as_dict(one: PlanChoice) -> dict[str, Any]:
    ranks = [one.best.rank, *(other.rank for other in one.alike)]
    return {"rank": one.best.rank, "strategy": _line(one), "as_good": ranks, "differs": one.differs,
            "p_best": one.p_best, "over": max(other.us for other in (one.best, *one.alike)) / one.best.us}  # fmt: skip


def _step(problem: PlanProblem, others: Sequence[PlanChoice]) -> str:
    if problem.cluster.costs is None and problem.cluster.nodes > 1:
        return "measure the links on this cluster, which makes the order surer, and plan with costs=costs.json"
    if others:
        return "measure the group, step by step"
    return "start it"


def as_dict(problem: PlanProblem, one: Ranked) -> dict[str, Any]:
    """Return a line of `--format json`."""
    its = one.setting
    sizes = {name: getattr(its, name) for name in ("tp", "pp", "cp", "ep", "etp", "dp", "edp", "vpp", "micro_batch")}
    return {
        "rank": one.rank, **sizes, "schedule": its.schedule.name, "chunks": its.schedule.chunks,
        "exchange": its.exchange, "zero": its.zero, "recompute": its.recompute, "step_ms": one.us / 1e3,
        "step_ms_low": one.low_us / 1e3, "step_ms_high": one.high_us / 1e3,
        "tokens_per_s_per_gpu": tokens_per_s(problem, one), "mfu": mfu(problem, one), "p_best": one.p_best,
        "memory_gib": one.memory_gib, "needed_gib": one.needed_gib, "margin_gib": one.margin_gib, "binds": one.binds,
        "tied": one.tied, "trainers": list(one.trainers),
        "parts_ms": {name: us / 1e3 for name, us in one.parts_us.items()},
        "memory_parts_gib": one.memory_parts_gib,
    }  # fmt: skip
