"""The keys of `commbench train`: what the parent composes and every rank reads. Nothing here imports torch.

What the model, the schedule of its layers or the text make of a key is checked where it is used, in `moe_ref`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from commbench.binding import policies
from commbench.emulated import Emulated, parse_rate
from commbench.errors import CorruptFile, UsageError, unknown
from commbench.records import Outer
from commbench.sweep import recipes

DEFAULT = "tiny"
TRANSPORTS = ("gloo", "nccl")
DTYPES = ("fp32", "bf16", "fp64")
RECOMPUTE = ("none", "redo", "stash")
BINDINGS = tuple(policy for policy in policies.POLICIES if policy != "explicit")  # whose masks only a profile has
# The program that ranks run in place of cases: imported there, by its name.
PROGRAM = "moe_ref.training.rank"
# Files of a start's folder: somebody asks the ranks to stop; what is wrong with what was asked, as ranks found it.
STOP, REFUSED = "stop", "refused.jsonl"
# What says before an A/B how long exchanges will take.
EXPECTED = "moe_ref.training.prediction"
_FILES = ("path", "profile")  # found again from any folder
# Of a run that goes on these may differ: none of them changes what is computed, but by rounding.
FREE = frozenset({
    "path", "steps", "val_every", "save_every", "keep", "transport", "nodes", "ranks_per_node", "fabric", "link",
    "message_overhead", "intra_link", "binding", "profile", "allow_mismatch", "schedule", "chunks", "groups", "r",
    "tp", "tp_tokens", "dispatch", "zero", "bucket_mb", "recompute", "peak_tflops", "timeout",
    "breakdown_steps", "tensorboard",
})  # fmt: skip
_OTHER_SLOTS = "parm_s1"  # the one schedule that counts slots in other groups of tokens, and so may drop others


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """docs/reference/keys.md has what each key means. Raises `UsageError` for values that cannot be meant."""

    recipe: str = DEFAULT
    # The model: `moe_ref.lm.LMConfig`.
    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    moe_freq: int
    experts: int
    top_k: int
    capacity: str
    capacity_factor: float
    capacity_multiple: int | None = None
    normalise: str = "after"
    order: str = "position"
    activation: str = "gelu"
    tied: bool = True
    # The expert layers.
    dispatch: str = "sparse"
    schedule: str | None = None
    chunks: int | None = None
    groups: int | None = None
    r: int | None = None
    tp_tokens: str | None = None
    profile: str | None = None
    allow_mismatch: bool = False
    # The text.
    path: str | None = None
    validation: float = 0.1
    val_sequences: int = 64
    val_every: int = 100
    # The training.
    batch: int
    parts: int | None = None
    steps: int
    warmup: int
    lr: float
    lr_end: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    aux: float = 0.01
    seed: int = 0
    dtype: str = "fp32"
    recompute: str = "none"
    zero: bool = True
    bucket_mb: float = 25.0
    save_every: int | None = 200
    keep: int = 2
    # The ranks.
    transport: str = "gloo"
    nodes: int = 1
    ranks_per_node: int = 4
    tp: int = 1
    binding: str = "none"
    fabric: str = "real"
    link: str = "1gbit"
    message_overhead: int = 0
    intra_link: str = "none"
    timeout: float = 300.0
    peak_tflops: float | None = None
    breakdown_steps: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("transport", TRANSPORTS), ("dtype", DTYPES), ("recompute", RECOMPUTE),
                              ("fabric", ("real", "emulated")), ("binding", BINDINGS)):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        for name in ("batch", "steps", "nodes", "ranks_per_node", "tp", "val_sequences", "keep"):
            _least(name, getattr(self, name), 1)
        for name in ("warmup", "val_every", "breakdown_steps", "seed", "lr", "weight_decay", "aux", "message_overhead"):
            _least(name, getattr(self, name), 0)
        for name in ("clip", "timeout", "bucket_mb", "peak_tflops"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UsageError(f"{name} is {value}", hint=f"{name} is above 0")
        if not 0 <= self.lr_end <= 1:
            raise UsageError(f"lr_end is {self.lr_end}", hint="0 <= lr_end <= 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"0 <= {name} < 1")
        if self.seed >= 2**63:
            raise UsageError(f"seed is {self.seed}", hint="seed is below 2^63")
        for name, least in (("parts", 1), ("capacity_multiple", 1), ("save_every", 0)):
            if (value := getattr(self, name)) is not None:
                _least(name, value, least)
        if self.ranks_per_node % self.tp:
            raise UsageError(f"tp={self.tp} does not divide ranks_per_node={self.ranks_per_node}",
                             hint="ranks that hold the same tokens are consecutive ones of a node")  # fmt: skip
        for name in ("heads", "hidden"):
            if getattr(self, name) % self.tp:
                raise UsageError(f"{name}={getattr(self, name)} does not divide among tp={self.tp} ranks",
                                 hint=f"a tp that divides heads={self.heads} and hidden={self.hidden}")  # fmt: skip
        if (self.capacity_multiple or self.tp) % self.tp and self._shares_slots:
            raise UsageError(f"capacity_multiple={self.capacity_multiple} is no multiple of tp={self.tp}",
                             hint="the ranks of a group divide slots: another tp_tokens, or schedule=tensor_parallel; "
                                  "a new run may take a capacity_multiple for any tp to come")  # fmt: skip
        self.cut(self.ranks // self.tp)
        if self.fabric == "emulated":
            if self.transport != "gloo":
                raise UsageError(f"transport={self.transport} does not run on fabric=emulated", hint="transport=gloo")
            parse_rate(self.link)
            if self.intra_link != "none":
                parse_rate(self.intra_link, "intra_link")

    @property
    def _shares_slots(self) -> bool:
        """Whether each rank of a group carries a share of an expert's slots."""
        return self.schedule == "parm_s2" or self.tp_tokens in ("drop", "drop_pipelined")

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def settled(self) -> Self:
        """Return the config with what follows from the rest, as one part for each rank with tokens of its own."""
        return dataclasses.replace(
            self,
            parts=self.parts or self.ranks // self.tp,
            capacity_multiple=self.capacity_multiple or self.tp,
            schedule=self.schedule or ("sequential" if self.tp == 1 else "tensor_parallel"),
        )

    def cut(self, ranks: int) -> tuple[int, int]:
        """How many parts the batch has, and sequences in each. ranks: those with tokens of their own, ranks / tp.

        Raises `UsageError` where numbers do not divide.
        """
        parts = self.parts or ranks
        if parts % ranks:
            raise UsageError(
                f"parts={parts} of a batch do not divide among {ranks} ranks" + (" (of W / tp)" if self.tp > 1 else ""),
                hint="each part is one rank's at a time, so nodes x ranks_per_node / tp divides them: "
                f"of {parts} parts: {_or([n for n in range(1, parts + 1) if parts % n == 0])}",
            )
        for name in ("batch", "val_sequences"):
            if getattr(self, name) % parts:
                raise UsageError(
                    f"{name}={getattr(self, name)} sequences do not divide into {parts} parts",
                    hint=f"{name} is a multiple of parts={parts}, which are as many as ranks / tp if nothing is said",
                )
        return parts, self.batch // parts

    @property
    def emulated(self) -> Emulated | None:
        if self.fabric != "emulated":
            return None
        intra = "" if self.intra_link == "none" else self.intra_link
        return Emulated(nodes=self.nodes, link=self.link, message_overhead=self.message_overhead, intra_link=intra)

    def outer(self, env: Mapping[str, str], **bound: Any) -> Outer:
        """What the launch of the ranks depends on. env, bound: a profile's, or what was typed."""
        return Outer(
            transport=self.transport,
            nodes=self.nodes,
            ranks_per_node=self.ranks_per_node,
            emulated=self.emulated,
            env=dict(env),
            **{"binding": self.binding, **bound},
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Raises `UsageError` for a key that is not one, that is missing, or whose value is of another kind."""
        kinds = typing.get_type_hints(cls)
        required = {item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING}
        for key in values:
            if key not in kinds:
                raise unknown("key", key, kinds)
        if missing := sorted(required - values.keys()):
            raise UsageError(f"the recipe lacks {missing[0]!r}", hint="compare it with sweeps/train/tiny.yaml")
        return cls(**{key: _typed(key, value, kinds[key]) for key, value in values.items()})

    def changed(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Keys in which the two would compute different things: (here, there)."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        free = FREE | {"recipe"}
        if (self.schedule == _OTHER_SLOTS) != (other.schedule == _OTHER_SLOTS):
            free -= {"schedule"}
        if self.schedule == _OTHER_SLOTS:  # whose slices are as many as tp
            free -= {"tp"}
        return {key: (mine[key], theirs[key]) for key in mine if key not in free and mine[key] != theirs[key]}


def keys() -> list[str]:
    return [item.name for item in dataclasses.fields(TrainConfig)]


def names() -> list[str]:
    """Recipes that come with commbench."""
    return sorted(file.stem for file in (recipes.root() / "train").glob("*.yaml"))


def compose(words: Sequence[str], *, first: Mapping[str, Any] | None = None) -> tuple[TrainConfig, dict[str, str]]:
    """The settings that words mean, [RECIPE] [KEY=VALUE ...], and variables for the ranks (env.NAME=VALUE).

    first: the settings of a run that goes on, in place of a recipe.
    """
    named = first is None and bool(words) and (recipes.is_file(words[0]) or "=" not in words[0])
    recipe, rest = (words[0], list(words[1:])) if named else (DEFAULT, list(words))
    overrides = recipes.parse_overrides(rest)
    if overrides.choices:
        raise unknown("key", next(iter(overrides.choices)), typing.get_type_hints(TrainConfig))
    typed = {}
    for key, values in overrides.values.items():
        if len(values) != 1:
            raise UsageError(f"{key} takes one value, not {len(values)}", hint="start one training for each")
        typed[key] = _absolute(values[0]) if key in _FILES else values[0]
    env = {name: values[0] for name, values in overrides.env.items()}
    base = dict(first) if first is not None else {"recipe": Path(recipe).stem, **_read(recipe)}
    base |= {key: _absolute(base[key]) for key in _FILES if key in base}
    config = TrainConfig.of({**base, **typed})
    # Who goes on may have another number of ranks.
    return config.settled(), env


def _absolute(value: Any) -> Any:
    return None if value is None else str(Path(str(value)).absolute())


def load(path: Path) -> TrainConfig:
    """Read a run folder's config.json. Raises `CorruptFile`."""
    try:
        return TrainConfig.of(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"{path}: {error}", hint="the run folder is damaged: start a new run") from error


def _read(recipe: str) -> dict[str, Any]:
    import yaml

    if recipes.is_file(recipe):
        path = Path(recipe)
    elif recipe in names():
        path = recipes.root() / "train" / f"{recipe}.yaml"
    else:
        raise unknown("recipe", recipe, names())
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"no recipe file {recipe!r}: {error.strerror}", hint=f"or one of {', '.join(names())}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"recipe {recipe!r}: {first}", hint="compare it with sweeps/train/tiny.yaml") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"recipe file {recipe!r} holds no keys", hint="compare it with sweeps/train/tiny.yaml")
    return values


def _typed(key: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`: 1 is a float too, and true is no number."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    if float in kinds and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # YAML takes 1e-3 for a word
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not any(type(value) is one for one in kinds):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
        raise UsageError(f"{key} is {value!r}", hint=f"{key} is {' or '.join(words[one] for one in kinds)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key} is {value}", hint=f"{key} is a finite number")
    return value


def _or(values: Sequence[object]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}" if most else last


def _least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise UsageError(f"{name} is {value}", hint=f"{name} is {least} or more")
