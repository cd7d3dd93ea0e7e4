"""What is typed of `commbench ab`: its keys, and the plan that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from commbench.ab import arms, pairs
from commbench.ab.arms import ProgramArm
from commbench.ab.metric import Metric
from commbench.ab.turns import TurnLimits
from commbench.binding import policies
from commbench.launch.foreign import Cluster
from commbench.sweep import foreign_keys
from commbench.sweep.key import Key, Number, OneOf, Parsed
from commbench.units import parse_seconds

_BUDGET = "30m"  # where neither rounds nor a budget is typed
TIMES, LEAST_S = 10, 60.0  # as long as the first launch, and no less: what takes longer hangs
_GROUP = "The comparison"
_STORED = ("words", "profiles", "reductions", "metric", "program", "allow_env")


def _time(name: str, value: Any) -> float:
    return parse_seconds(name, str(value))


# fmt: off
KEYS: dict[str, Key] = {
    "rounds": Key(Number(int, 1, 10_000), "launches of each arm, all of them, whatever comes out; without it, until it "
                  f"is resolved, {pairs.MOST_ROUNDS} at the most", default=None, optional=True, group=_GROUP),
    "budget": Key(Parsed(_time, "90s, 30m, 2h"), f"time for all launches; {_BUDGET} where rounds is not set",
                  default=None, optional=True, group=_GROUP),
    "resolve": Key(Number(float, 0.0001, 1), "a difference that does not matter: none above it ends the comparison",
                   default=0.01, group=_GROUP),
    "warmup": Key(Number(int, 0, 1_000_000), "steps of a launch that do not count; null: a fifth, and two at the least",
                  default=None, optional=True, group=_GROUP),
    "binding": Key(OneOf(tuple(policy for policy in policies.POLICIES if policy != "explicit")),
                   "by which ranks of torchrun bind themselves: one for each arm, or one for both", default=None,
                   axis=True, optional=True, group=_GROUP),
    "better": Key(OneOf(("lower", "higher")), "which value of --metric is", default="lower", group=_GROUP),
    "timeout": Key(Parsed(_time, "90s, 30m, 2h"), f"of a launch; {TIMES} times the first one where that is less",
                   default="1h", group=_GROUP),
}
# fmt: on


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    env = ["", "Environment variables:", "  env.NAME=A,B            one value for each arm; env.NAME=A: for both",
           "  candidate.env.NAME=A    of one arm alone, as often as needed; baseline. as well"]  # fmt: skip
    return foreign_keys.explain_keys(width, KEYS, (_GROUP,)) + "\n".join([*env, ""])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRequest:
    """What was typed. program: what stands after `--`."""

    words: tuple[str, ...]
    profiles: tuple[str, ...] = ()
    reductions: bool = False
    metric: str = ""
    allow_env: tuple[str, ...] = ()
    program: tuple[str, ...] | None = None
    out: Path = Path("results")
    format: str = "table"
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPlan:
    """What is to be done, read from a request."""

    arms: Mapping[str, ProgramArm]
    cluster: Cluster | None
    metric: Metric
    limits: TurnLimits
    timeout_s: float
    request: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return what may not change while it goes on."""
        its = {"arms": {name: arm.settings() for name, arm in self.arms.items()}, "metric": asdict(self.metric),
               "cluster": None if self.cluster is None else str(self.cluster),
               "rounds_asked": self.limits.rounds}  # fmt: skip
        return json.loads(json.dumps(its))  # type: ignore[no-any-return]


def plan(request: ProgramRequest) -> ProgramPlan:
    """Read what was typed. Raises `UsageError`."""
    common, own = arms.split(request.words)
    found = foreign_keys.read(common, KEYS)
    values = {name: KEYS[name].read(name, found.own[name]) for name in KEYS}
    rounds, budget = values["rounds"], values["budget"]
    return ProgramPlan(
        arms=arms.arms_of(
            request.program,
            request.profiles,
            found.env,
            own,
            request.allow_env,
            values["binding"],
            reductions=request.reductions,
        ),
        cluster=found.cluster,
        metric=Metric(pattern=request.metric, warmup=values["warmup"], higher=values["better"] == "higher"),
        limits=TurnLimits(
            rounds=rounds,
            budget_s=parse_seconds("budget", _BUDGET) if rounds is None and budget is None else budget,
            resolve=values["resolve"],
        ),
        timeout_s=values["timeout"],
        request={name: getattr(request, name) for name in _STORED},
    )
