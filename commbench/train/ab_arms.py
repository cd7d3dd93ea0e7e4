"""The arms of `commbench train ab`: what is typed, as two trainings that differ in what only changes time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench.ab.pairs import ARMS, BASELINE, CANDIDATE
from commbench.ab.turns import TurnLimits
from commbench.errors import UsageError, unknown
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.train import ab
from commbench.train import config as training
from commbench.train.config import TrainConfig
from commbench.units import parse_seconds

_ROUNDS = 10
_DEFAULTS = ("steps=20", "val_every=0", "save_every=null", "breakdown_steps=0")
_DEFAULT = ("default", "none", "null")  # in place of a profile's path


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    words: tuple[str, ...]
    config: TrainConfig
    env: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """Return every key, with the variables that ranks are given."""
        return {**dataclasses.asdict(self.config), **{f"env.{name}": value for name, value in self.env.items()}}


def arms_of(words: Sequence[str]) -> tuple[dict[str, Arm], TurnLimits, Path | None]:
    """Return both arms, when to stop, and the file of a cost model. Raises `UsageError`.

    `baseline=FILE` and `candidate=FILE` name profiles, `default` is none; `baseline.KEY=VALUE` is any key of one arm.
    """
    common, own = [], {name: list[str]() for name in ARMS}
    rounds: int | None = None
    budget_s: float | None = None
    costs: Path | None = None
    for word in words:
        key, _, value = word.partition("=")
        arm, _, inner = key.partition(".")
        if arm in ARMS:
            if not value:
                raise UsageError(f"{word!r} has no value", hint=f"{arm}=FILE, {arm}=default, or {arm}.KEY=VALUE")
            profile = "null" if value in _DEFAULT else value
            own[arm].append(f"{inner}={value}" if inner else f"profile={profile}")
        elif key == "rounds":
            rounds = _whole(value)
        elif key == "budget":
            budget_s = parse_seconds(key, value)
        elif key == "model":
            costs = Path(value)
        else:
            common.append(word)
    typed = {word.partition("=")[0] for word in common if "=" in word}
    for key in typed - training.KEYS.keys() - training.ALIASES.keys():
        if not key.startswith("env."):
            raise unknown("key", key, [*training.KEYS, *ARMS, "rounds", "budget", "model"])
    common += [word for word in _DEFAULTS if word.partition("=")[0] not in typed]
    arms = {}
    for name in ARMS:
        words = (*common, *own[name])
        config, env = training.compose(words)
        arms[name] = Arm(name=name, words=words, config=config, env=env)
    _check(arms)
    if rounds is None and budget_s is None:
        rounds = _ROUNDS
    return arms, TurnLimits(rounds=rounds, budget_s=budget_s), costs


def _check(arms: Mapping[str, Arm]) -> None:
    """Raise `UsageError` where the arms are the same, or differ in more than time."""
    one, two = (arms[name].config for name in ARMS)
    if arms[BASELINE].settings() == arms[CANDIDATE].settings():
        profile = "no profile" if one.profile is None else one.profile
        raise UsageError(f"baseline and candidate are the same: {one.recipe} with {profile}",
                         hint="candidate=p.json, or candidate.KEY=VALUE")  # fmt: skip
    changed = two.changed(one)
    if one.path != two.path:  # a run that goes on may find its text elsewhere
        changed["path"] = two.path, one.path
    if changed:
        differences = ", ".join(f"{key} ({there} and {here})" for key, (here, there) in changed.items())
        raise UsageError(f"the arms would train different models: {differences}",
                         hint=f"arms may differ in what only changes time: profile, schedule, permute, ..; else "
                              f"{next(iter(changed))}=VALUE for both")  # fmt: skip
    if one.steps != two.steps:
        raise UsageError(f"the arms have {one.steps} and {two.steps} steps", hint="steps=N for both")
    ab.check_steps(one.steps)


def _whole(text: str) -> int:
    if not (text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise UsageError(f"rounds={text}", hint=f"a whole number; a claim of a gain takes {PAIRS_FOR_CLAIM}")
    return int(text)
