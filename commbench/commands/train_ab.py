"""`commbench train ab`: the same training under two settings, in fresh launches by turns."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from commbench import ab, training, transports
from commbench.ab import ARMS, BASELINE, CANDIDATE, Launched, Outcome
from commbench.commands import train
from commbench.commands.session import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from commbench.errors import UsageError
from commbench.profile import file as profile_file
from commbench.profile.table import Curve, Table
from commbench.stats import PAIRS_FOR_CLAIM
from commbench.store import RunFolder, append_line, write_atomically
from commbench.training import TrainConfig

_ROUNDS, _STEPS = 10, 20
_DEFAULT = ("default", "none", "null")  # in place of a profile's path
_SAME = 1e-12  # relative: losses that differ by no more are called identical


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    words: tuple[str, ...]
    config: TrainConfig


def run(request: train.Request) -> int:
    """The exit code: 0 there is an answer, 1 a launch broke, 130 interrupted. Raises `CommbenchError`."""
    arms, rounds = arms_of(request.words)
    if request.show_config:
        sys.stdout.write("".join(f"{arm.name}: {arm.config.to_json()}\n" for arm in arms.values()))
        return EXIT_OK
    transports.check(arms[BASELINE].config.transport)
    folder = RunFolder.create(request.out, "train-ab").path
    for name in ("logs", "samples"):
        (folder / name).rmdir()
    talk = train.Line(quiet=request.quiet)
    note = f"{_names(arms)}: {rounds} rounds of {arms[BASELINE].config.steps} steps, in {folder}"
    talk.note(note)
    calibration, code = _launch(request, arms[BASELINE], folder, -1)
    if calibration is None:
        return code
    expected = _predicted(calibration, arms)
    talk.note(
        "predicted before the rounds: "
        + (
            f"{expected:.3f}x"
            if expected is not None
            else "nothing: the arms differ in more than a profile, or it knows nothing of these ranks"
        )
    )
    launches: list[Launched] = []
    for number in range(rounds):
        for name in ARMS if number % 2 == 0 else ARMS[::-1]:
            found, code = _launch(request, arms[name], folder, number)
            if found is None:
                return code
            launches.append(found)
            append_line(folder / "launches.jsonl", json.dumps(dataclasses.asdict(found)))
        talk.note(f"round {number + 1} of {rounds}: {_so_far(launches)}")
    outcome = ab.compare(launches)
    _write(request, folder, arms, launches, outcome, expected)
    return EXIT_OK


def arms_of(words: Sequence[str]) -> tuple[dict[str, Arm], int]:
    """Both arms and the number of rounds. Raises `UsageError`.

    `baseline=FILE` and `candidate=FILE` name profiles, `default` is none; `baseline.KEY=VALUE` is any key of one arm.
    """
    common, own, rounds = [], {name: list[str]() for name in ARMS}, _ROUNDS
    for word in words:
        key, _, value = word.partition("=")
        arm, _, inner = key.partition(".")
        if arm in ARMS:
            profile = "null" if value in _DEFAULT else value
            own[arm].append(f"{inner}={value}" if inner else f"profile={profile}")
        elif key == "rounds":
            rounds = _whole(value)
        else:
            common.append(word)
    typed = {word.partition("=")[0] for word in common}
    common += [f"{key}={value}" for key, value in (("steps", _STEPS), ("val_every", 0), ("save_every", "null"))
               if key not in typed]  # fmt: skip
    arms = {}
    for name in ARMS:
        words = (*common, *own[name])
        arms[name] = Arm(name=name, words=words, config=training.compose(words)[0])
    one, two = (arms[name].config for name in ARMS)
    if one == two:
        raise UsageError("baseline and candidate are the same", hint="candidate=p.json, or candidate.KEY=VALUE")
    if changed := two.changed(one):
        told = ", ".join(f"{key} ({there} and {here})" for key, (here, there) in changed.items())
        raise UsageError(f"the arms would train different models: {told}",
                         hint="arms may differ in what only changes time: profile, schedule, dispatch, ..")  # fmt: skip
    if one.steps != two.steps:
        raise UsageError(f"the arms have {one.steps} and {two.steps} steps", hint="steps=N for both")
    return arms, rounds


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"rounds={text}", hint=f"a whole number; a claim of a gain takes {PAIRS_FOR_CLAIM}")
    return int(text)


def _launch(request: train.Request, arm: Arm, folder: Path, number: int) -> tuple[Launched | None, int]:
    """One training from its beginning, in a run folder of its own. None: it broke, or was stopped; with the code."""
    its = replace(request, words=arm.words, out=folder, quiet=True, format="none")
    code, run_folder = train.once(its)
    if code != EXIT_OK:
        return None, EXIT_INTERRUPTED if code == EXIT_INTERRUPTED else EXIT_FAILED
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return ab.launched(arm.name, number, lines, arm.config.batch * arm.config.context), EXIT_OK


def _predicted(calibration: Launched, arms: Mapping[str, Arm]) -> float | None:
    one, two = (arms[name].config for name in ARMS)
    if replace(one, profile=None, allow_mismatch=False) != replace(two, profile=None, allow_mismatch=False):
        return None
    return ab.predicted(calibration, _curve(one), _curve(two))


def _curve(config: TrainConfig) -> Curve | None:
    """Of the scope that the arm's ranks are started for; None without a profile, or where no one scope is theirs."""
    scope = train.scope_of(config)
    if config.profile is None or scope is None:
        return None
    return Table(profile_file.load(Path(config.profile)), scope.id).curve("all_to_all")


def _names(arms: Mapping[str, Arm]) -> str:
    one, two = (dataclasses.asdict(arms[name].config) for name in ARMS)
    told = [f"{key}={one[key] or 'default'} and {two[key] or 'default'}" for key in one if one[key] != two[key]]
    return ", ".join(told)


def _so_far(launches: Sequence[Launched]) -> str:
    last = {one.arm: one for one in launches[-2:]}
    return f"{last[CANDIDATE].tokens_per_s / last[BASELINE].tokens_per_s:.3f}x"


def table(outcome: Outcome, expected: float | None) -> list[str]:
    """For people."""
    interval = "no interval" if outcome.low is None else f"{outcome.low:.3f} - {outcome.high:.3f}"
    lines = [f"{'arm':<10}{'tokens/s':>12}{'waits for communication':>26}"]
    for arm in ARMS:
        lines.append(f"{arm:<10}{outcome.tokens_per_s[arm]:>12.0f}{100 * outcome.exposed[arm]:>24.1f} %")
    lines.append(
        f"# throughput: {outcome.ratio:.3f}x ({interval}, {outcome.pairs} pairs of launches): {outcome.verdict}"
    )
    if not outcome.claim:
        lines.append(f"# a claim of a gain takes {PAIRS_FOR_CLAIM} pairs: rounds={PAIRS_FOR_CLAIM}")
    if expected is not None:
        lines.append(f"# predicted before: {expected:.3f}x; measured / predicted {outcome.ratio / expected:.3f}")
    same = outcome.losses <= max(_SAME, outcome.apart)
    lines.append(
        "# losses of both arms are identical at every step"
        if outcome.losses == 0
        else f"# losses of the arms differ by {outcome.losses:.1e} at most, those of one arm by {outcome.apart:.1e}"
        + ("" if same else ": the order of additions, or a mistake")
    )
    return lines


def _write(
    request: train.Request, folder: Path, arms: Mapping[str, Arm], launches: Sequence[Launched], outcome: Outcome,
    expected: float | None,
) -> None:  # fmt: skip
    about: dict[str, Any] = {
        **dataclasses.asdict(outcome), "verdict": str(outcome.verdict), "predicted": expected,
        "arms": {name: json.loads(arm.config.to_json()) for name, arm in arms.items()},
        "command": ["commbench", "train", "ab", *request.words],
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_atomically(folder / "ab.json", json.dumps(about, indent=1) + "\n")
    if request.format == "json":
        sys.stdout.write(json.dumps(about) + "\n")
    else:
        sys.stdout.write("\n".join(table(outcome, expected)) + "\n")
    talk = train.Line(quiet=request.quiet)
    try:
        from commbench.plots.ab import draw

        talk.note(f"plot: {draw(launches, outcome, expected, _names(arms), folder / 'plots' / 'ab.png')}")
    except (OSError, ValueError) as error:
        talk.note(f"no plot: {error}")


__all__ = ["arms_of", "run", "table"]
