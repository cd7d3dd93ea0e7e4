"""The engine of `commbench train ab`: the same training under two settings, in fresh launches by turns."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commbench
from commbench.ab import answer, pairs
from commbench.ab.pairs import ARMS, BASELINE, Paired
from commbench.ab.turns import TurnLimits, Turns
from commbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CommbenchError, CorruptFile, UsageError, storage
from commbench.machine import metadata
from commbench.output.answer.words import count
from commbench.output.grid import refolded
from commbench.profile import file as profile_file
from commbench.profile.table import Table
from commbench.records import network_note
from commbench.run_folder import RunFolder, append_record, timestamp
from commbench.serialise import parse_json
from commbench.sweep import prepare
from commbench.sweep.session import interrupt_on_sigterm
from commbench.train import ab, launch, results
from commbench.train import config as training
from commbench.train.ab import Launched
from commbench.train.ab_arms import Arm
from commbench.train.ab_expected import ExpectedRatio, as_facts, recorded_bias
from commbench.train.ab_prediction import predicted
from commbench.train.ab_table import names, table
from commbench.train.config import TrainConfig
from commbench.train.progress import TrainConsole, write

if TYPE_CHECKING:
    from commbench.cost_model import Model

# What prediction knows about; `profile` stands for what it has chosen.
_EXCHANGES = frozenset({"profile", "allow_mismatch", "schedule", "chunks", "groups", "r", "tp_tokens"})


class _Stopped(Exception):
    """Raised by a launch that has not ended as it should, with the exit code of the whole."""


def create(request: launch.TrainRequest, arms: Mapping[str, Arm], limits: TurnLimits, costs: Path | None) -> Comparison:
    """Check what ranks would find missing, and make the folder. Raises `CommbenchError`."""
    expected = importlib.import_module(training.EXPECTED)  # torch, which nothing else here needs
    for arm in arms.values():
        launch.check(arm.config)
        launch.check_env(request, arm.config, arm.env)
        expected.check(arm.config)
    model = None if costs is None else _model(costs, arms[BASELINE].config)
    return Comparison(request, arms, limits, model)


class Comparison:
    """Measures an A/B. What it knows is in `ab.json` from the beginning."""

    def __init__(
        self, request: launch.TrainRequest, arms: Mapping[str, Arm], limits: TurnLimits, model: Model | None
    ) -> None:
        self._request, self._arms, self._limits, self._model = request, arms, limits, model
        self._console = TrainConsole(quiet=request.quiet)
        self._turns = Turns(limits, self._launch, self._say, clock=time.monotonic)
        self._stopped: str | None = None
        self._calibration: Launched | None = None
        self._predicted: ExpectedRatio | None = None
        self._doing = ""
        self._folder = RunFolder.create(request.out, "train-ab", parts=())
        self._folder.link_latest()
        machine = metadata.collect()
        self._about = {
            "arms": {name: arm.settings() for name, arm in arms.items()},
            "command": ["commbench", "train", "ab", *request.words],
            "commbench_version": commbench.__version__,
            "machine_text": prepare.machine_text(machine),
            "started": timestamp(),
        }

    @property
    def title(self) -> str:
        return names([arm.settings() for arm in self._arms.values()])

    @property
    def about(self) -> dict[str, Any]:
        """Return what `ab.json` has."""
        return self._about

    @property
    def folder(self) -> Path:
        return self._folder.path

    @property
    def launches(self) -> list[Launched]:
        """Return the launches of the rounds that have both arms."""
        return [one for both in pairs.whole(self._turns.launches) for one in both]

    @property
    def outcome(self) -> ab.Outcome:
        return ab.compare(self.launches, self._calibration, self._turns.paired)

    def run(self) -> int:
        """Return the exit code. However it ends, what has been measured until then is written and printed.

        Raises what ranks refused, and `EnvironmentProblem` where the disk takes no more.
        """
        with storage(self.folder, "make room, then start it again; its whole rounds are in its launches.jsonl"):
            return self._run()

    def _run(self) -> int:
        interrupt_on_sigterm()
        steps, folder = self._arms[BASELINE].config.steps, self.folder
        most = f"{'up to ' if self._limits.rounds is None else ''}{count(self._limits.most, 'round')}"
        self._console.note(f"{self.title}: {most} of {count(steps, 'step')}, in {folder}")
        self._write("running")
        status, code = "failed", EXIT_FAILED
        refused: CommbenchError | None = None
        try:
            self._measure()
            status, code = "finished", EXIT_OK
        except _Stopped as stopped:
            code = stopped.args[0]
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        except CommbenchError as error:  # by the ranks of a launch, or one that diverged
            refused = error
        finally:
            status = "interrupted" if code == EXIT_INTERRUPTED else status
            self._write(status)
        if code != EXIT_OK:
            kept = count(len(self.launches) // 2, "whole round")
            self._console.note(f"{status} at {self._doing}; {kept} of {self._limits.most} kept in {folder}")
        if self.launches:
            self._print()
        if refused is not None:
            raise refused
        return code

    def _measure(self) -> None:
        self._calibration = self._launch(BASELINE, -1)
        self._predicted, why = predict(self._calibration, self._arms, self._model)
        said = f"nothing: {why}" if self._predicted is None else str(self._predicted)
        if self._predicted is not None and self._predicted.bias is not None:
            said += f"; {self._predicted.bias} A/Bs on record"
        self._console.note(f"predicted before the rounds: {said}")
        self._write("running")
        self._stopped = str(self._turns.run())

    def _say(self, paired: Paired) -> None:
        one, two = self.launches[-2:]
        self._console.note(f"round {paired.rounds} of {self._limits.most}: {one.cost / two.cost:.3f}x")

    def _launch(self, name: str, number: int) -> Launched:
        """Train once from the beginning, in a run folder of its own. Raises `_Stopped`."""
        arm = self._arms[name]
        self._doing = f"{arm.name}, round {number + 1}" if number >= 0 else "the baseline's launch before the rounds"
        its = replace(self._request, words=arm.words, out=self._folder.path, quiet=True, format="none")
        ended = launch.once(its)
        if ended.asked or ended.code == EXIT_INTERRUPTED:
            raise _Stopped(EXIT_INTERRUPTED)
        if ended.code != EXIT_OK:
            raise _Stopped(EXIT_FAILED)
        self._about["fabric"] = RunFolder(ended.folder).read_json("run.json")["fabric"]
        tokens = arm.config.batch * arm.config.context
        launched = ab.launched(arm.name, number, results.steps(ended.folder), tokens, ended.folder.name)
        if number >= 0:
            append_record(self._folder.path / "launches.jsonl", json.dumps(dataclasses.asdict(launched)))
        return launched

    def _write(self, status: str) -> None:
        about: dict[str, Any] = {**self._about, "status": status, "updated": timestamp(), **as_facts(self._predicted)}
        if self._calibration is not None:
            about["calibration"] = dataclasses.asdict(self._calibration)
        if self.launches:
            facts = answer.facts(self._turns.paired, {}, what="step time", resolve=self._limits.resolve, timed=True)
            about |= {**dataclasses.asdict(self.outcome), **facts, "stopped": self._stopped}
        self._about = about
        self._folder.write_json("ab.json", about)

    def _print(self) -> None:
        if self._request.format != "table":
            write(json.dumps(self._about))
            return
        lines = [*table(self.outcome, self._predicted), *self._resolution()]
        if note := network_note(str(self._about["fabric"])):
            lines.append(f"# {note}")
        write("\n".join([*refolded(lines), f"# next: {self._about.get('next', 'go on')}"]))

    def _resolution(self) -> list[str]:
        """Return what could have been found."""
        paired = self._turns.paired
        text = str(paired.resolution(self._limits.resolve)) if paired is not None else ""
        return [f"# {text}"] if text else []


def _model(path: Path, config: TrainConfig) -> Model:
    """Read what `commbench model --out` has written. Raises `UsageError` where it is not of these ranks' links."""
    from commbench.cost_model import Model

    hint = "commbench model RUN --out FILE, of runs on the links of the training"
    try:
        raw = parse_json(path.read_text())
        model = Model.from_dict(raw if isinstance(raw, dict) else {})
    except OSError as error:
        raise UsageError(f"no cost model {str(path)!r}: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise CorruptFile(f"{path} is not a cost model: {error}", hint=hint) from error
    texts = [fitted.text for fitted in model.settings.values()]
    links = f"{config.transport}, emulated: {config.emulated}, " if config.emulated else f"{config.transport}, "
    fits = len(texts) == 1 and texts[0].startswith(links) and ("emulated:" in texts[0]) == bool(config.emulated)
    if not fits:
        raise UsageError(f"{path} has the costs of {'; '.join(texts) or 'nothing'}, and the training is on "
                         f"{links.removesuffix(', ')}", hint=hint)  # fmt: skip
    return model


def predict(calibration: Launched, arms: Mapping[str, Arm], model: Model | None) -> tuple[ExpectedRatio | None, str]:
    """Return the ratio with its interval and bias, or why there is none."""
    one, two = (arms[name].settings() for name in ARMS)
    others = [key for key in {**one, **two} if one.get(key) != two.get(key) and key not in _EXCHANGES]
    if others:
        return None, f"it knows exchanges alone, and the arms differ in {', '.join(others)}"
    tables = [_table(arms[name].config) for name in ARMS]
    known = [one for one in tables if one is not None]
    expected = importlib.import_module(training.EXPECTED)
    try:
        times = [expected.exchanges(arms[name].config, own, known, model)
                 for name, own in zip(ARMS, tables, strict=True)]  # fmt: skip
    except UsageError as error:
        return None, f"{error}; {error.hint}"
    ratio = predicted(calibration, *times)
    if ratio is None:
        return None, "no time is spent in exchanges"
    return replace(ratio, bias=recorded_bias(one, two)), ""


def _table(config: TrainConfig) -> Table | None:
    """Return the table of the arm's scope; None without a profile, or where no one scope is its ranks'."""
    scope = launch.scope_of(config)
    if config.profile is None or scope is None:
        return None
    return Table(profile_file.load(Path(config.profile)), scope.id)
