"""The keys of `commbench train`: what the parent composes and every rank reads. Nothing here imports torch.

What the model, the schedule of its layers or the text make of a key is checked where it is used, in `moe_ref`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from commbench import payloads
from commbench.binding import policies
from commbench.console import stderr_console
from commbench.emulated import Emulated, parse_rate
from commbench.errors import CorruptFile, UsageError, unknown
from commbench.records import Setup
from commbench.serialise import check_types, parse_json, unseal
from commbench.sweep import recipes
from commbench.sweep.key import OneOf, explain, keys_of
from commbench.train.key import ABOVE_0, AT_LEAST_0, AT_LEAST_1, BELOW_1, PART, TrainKey, keys_in

DEFAULT = "tiny"
TRANSPORTS = ("gloo", "nccl")
DTYPES = ("fp32", "bf16", "fp64")
RECOMPUTE = ("none", "redo", "stash")
OFFLOAD = ("none", "activations")
RESUME_BY = ("files", "reshard")
EXCHANGES = ("per_choice", "per_rank", "per_node", "all_gather", "profile")
BINDINGS = tuple(policy for policy in policies.POLICIES if policy != "explicit")  # whose masks only a profile has
_OF_FABRIC = ("link", "message_overhead", "intra_link")
_SHOWN = 1024  # numbers of parts that a hint may list
# The program that ranks run in place of cases: imported there, by its name.
PROGRAM = "moe_ref.training.rank"
# Files of a start's folder: somebody asks the ranks to stop; what is wrong with what was asked, as ranks found it.
STOP, REFUSED = "stop", "refused.jsonl"
# What says before an A/B how long exchanges will take.
EXPECTED = "moe_ref.training.prediction"
# Old names of keys, in files and typed, which stay for one release: docs/reference/stability.md.
ALIASES = {"dispatch": "permute"}
_OTHER_SLOTS = "parm_s1"  # the one schedule that counts slots in other groups of tokens, and so may drop others


GROUPS = ("The model", "The expert layers", "The text", "The training", "The ranks")
_model, _layer, _text, _training, _ranks = map(keys_in, GROUPS)


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Every key: its type, what help says of it, what its value may be, its default.

    Raises `UsageError` for values that cannot be meant.
    """

    recipe: Annotated[str, _training("name of the recipe", free=True)] = DEFAULT
    # The model: `moe_ref.lm.LMConfig` checks sizes.
    layers: Annotated[int, _model("blocks")]
    width: Annotated[int, _model("D, elements of a token")]
    heads: Annotated[int, _model("heads of the attention")]
    hidden: Annotated[int, _model("H, of the FFN and of each expert")]
    context: Annotated[int, _model("S, positions of a sequence")]
    moe_freq: Annotated[int, _model("every so many-th layer has experts; 0: none")]
    experts: Annotated[int, _model("E, experts of a layer")]
    top_k: Annotated[int, _model("experts to which a token goes")]
    capacity: Annotated[str, _model("rule: fairseq, tutel, deepspeed, dropless")]
    capacity_factor: Annotated[float, _model("f of the rule; 0: as many slots as the fullest has")]
    capacity_multiple: Annotated[int | None, _model("slots are a multiple of this; null: tp", AT_LEAST_1)] = None
    normalise: Annotated[str, _model("before or after tokens are dropped")] = "after"
    order: Annotated[str, _model("who is served first: docs/guide/moe.md")] = "position"
    activation: Annotated[str, _model("relu, gelu, silu")] = "gelu"
    tied: Annotated[bool, _model("whether the head is the embedding")] = True
    # The expert layers.
    permute: Annotated[str, _layer("how rows go into the buffer and back; auto: the fastest here", free=True)] = "auto"
    schedule: Annotated[str | None, _layer("null: sequential, with tp tensor_parallel", free=True)] = None
    chunks: Annotated[int | None, _layer("of pipelined: chunks of the tokens", free=True)] = None
    groups: Annotated[int | None, _layer("of expert_groups: how many", free=True)] = None
    r: Annotated[int | None, _layer("ranks to which a token of a sharded expert goes", free=True)] = None
    tp_tokens: Annotated[str | None, _layer("of tensor_parallel: how its ranks exchange tokens", free=True)] = None
    exchange: Annotated[str, _layer("how often a token travels: docs/guide/moe.md", OneOf(EXCHANGES), free=True)] = (
        "profile"
    )
    payload: Annotated[str, _layer("how tokens travel: docs/reference/payloads.md", OneOf(payloads.CHOICES))] = "none"
    payload_back: Annotated[str, _layer("how their gradients travel", OneOf(payloads.CHOICES))] = "none"
    profile: Annotated[str | None, _layer("of commbench tune; null: none", free=True, file=True)] = None
    allow_mismatch: Annotated[bool, _layer("use a profile elsewhere than where it was tuned", free=True)] = False
    # The text.
    path: Annotated[str | None, _text("file of text; null: the sample", free=True, file=True)] = None
    validation: Annotated[float, _text("part that is held out, at its end")] = 0.1
    val_sequences: Annotated[int, _text("sequences of an evaluation", AT_LEAST_1)] = 64
    val_every: Annotated[int, _text("steps between evaluations; 0: at the end only", AT_LEAST_0, free=True)] = 100
    # The training.
    batch: Annotated[int, _training("sequences of a step, on all ranks together", AT_LEAST_1)]
    parts: Annotated[int | None, _training("parts of a batch; null: ranks / tp", AT_LEAST_1)] = None
    steps: Annotated[int, _training("steps to make", AT_LEAST_1, free=True)]
    warmup: Annotated[int, _training("steps up to the highest learning rate", AT_LEAST_0)]
    lr: Annotated[float, _training("the highest learning rate", AT_LEAST_0)]
    lr_end: Annotated[float, _training("the last learning rate, by the highest", PART)] = 0.1
    beta1: Annotated[float, _training("of Adam", BELOW_1)] = 0.9
    beta2: Annotated[float, _training("of Adam", BELOW_1)] = 0.95
    weight_decay: Annotated[float, _training("of matrices", AT_LEAST_0)] = 0.1
    clip: Annotated[float, _training("largest norm of the gradients", ABOVE_0)] = 1.0
    aux: Annotated[float, _training("coefficient of the load-balancing loss", AT_LEAST_0)] = 0.01
    seed: Annotated[int, _training("of weights and of the order of the text", AT_LEAST_0)] = 0
    dtype: Annotated[str, _training("of products: docs/guide/training.md", OneOf(DTYPES))] = "fp32"
    recompute: Annotated[str, _training("of activations, in the backward pass", OneOf(RECOMPUTE), free=True)] = "none"
    offload: Annotated[str, _training(
        "what waits for the backward pass in the host's memory", OneOf(OFFLOAD), free=True)] = "none"
    graphs: Annotated[bool, _training("whether steps are replayed from CUDA graphs", free=True)] = False
    zero: Annotated[bool, _training("whether ranks share the optimizer's state", free=True)] = True
    bucket_mb: Annotated[float, _training("MB of gradients that are reduced together", ABOVE_0, free=True)] = 25.0
    save_every: Annotated[int | None, _training(
        "steps between checkpoints; 0: at the end only, null: never", AT_LEAST_0, free=True)] = 200
    resume_by: Annotated[str, _training(
        "files: each rank reads what it needs of a checkpoint; reshard: one rank each byte, and sends it on",
        OneOf(RESUME_BY), free=True)] = "files"
    keep: Annotated[int, _training("checkpoints that are kept", AT_LEAST_1, free=True)] = 2
    # The ranks.
    transport: Annotated[str, _ranks("what carries the messages", OneOf(TRANSPORTS), free=True)] = "gloo"
    nodes: Annotated[int, _ranks("hosts", AT_LEAST_1, free=True)] = 1
    ranks_per_node: Annotated[int, _ranks("ranks on each of them", AT_LEAST_1, free=True)] = 4
    tp: Annotated[int, _ranks("ranks that have the same tokens", AT_LEAST_1, free=True)] = 1
    binding: Annotated[str, _ranks("which CPUs and memory ranks get", OneOf(BINDINGS), free=True)] = "none"
    fabric: Annotated[str, _ranks(
        "emulated: nodes on a network of the following", OneOf(("real", "emulated")), free=True)] = "real"
    link: Annotated[str, _ranks("rate of a node's link, in each direction", free=True)] = "1gbit"
    message_overhead: Annotated[int, _ranks("bytes a packet is charged above its own", AT_LEAST_0, free=True)] = 0
    intra_link: Annotated[str, _ranks("rate inside a node; none: as fast as memory is", free=True)] = "none"
    record_routing: Annotated[str | None, _ranks(
        ".npz to write: the experts that tokens take; null: none", free=True, file=True)] = None
    timeout: Annotated[float, _ranks("seconds without a step after which it is ended", ABOVE_0, free=True)] = 300.0
    peak_tflops: Annotated[float | None, _ranks("peak of a rank, for mfu", ABOVE_0, free=True)] = None
    breakdown_steps: Annotated[int, _ranks("steps that are profiled; 0: none", AT_LEAST_0, free=True)] = 2
    tensorboard: Annotated[bool, _ranks("whether metrics go to TensorBoard's files too", free=True)] = False
    # fmt: on

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            if (value := getattr(self, name)) is not None:
                key.check(name, value)
        if self.ranks_per_node % self.tp:
            raise UsageError(f"tp={self.tp} does not divide ranks_per_node={self.ranks_per_node}",
                             hint="ranks that have the same tokens are consecutive ones of a node")  # fmt: skip
        for name in ("heads", "hidden"):
            if getattr(self, name) % self.tp:
                raise UsageError(f"{name}={getattr(self, name)} does not divide among tp={self.tp} ranks",
                                 hint=f"a tp that divides heads={self.heads} and hidden={self.hidden}")  # fmt: skip
        if (self.capacity_multiple or self.tp) % self.tp and self._shares_slots:
            raise UsageError(f"capacity_multiple={self.capacity_multiple} is not a multiple of tp={self.tp}",
                             hint="the ranks of a group divide slots: another tp_tokens, or schedule=tensor_parallel; "
                                  "a new run may take a capacity_multiple for any tp to come")  # fmt: skip
        for name in ("payload", "payload_back"):
            payload = payloads.get(getattr(self, name))
            if payload is not None and (reason := payload.unsupported(self.dtype)):
                raise UsageError(f"{name}: {reason}", hint=f"{name}=none, or another dtype")
        self.cut(self.ranks // self.tp)
        if self.record_routing is not None and (self.tp > 1 or not self.moe_freq):
            why = f"tp={self.tp}: ranks have the same tokens" if self.tp > 1 else "moe_freq=0: no layer has experts"
            raise UsageError(f"record_routing with {why}", hint="tp=1 and moe_freq=1 or more, or leave it out")
        if self.offload != "none" and (self.recompute != "none" or self.graphs):
            other = "graphs=true" if self.graphs else f"recompute={self.recompute}"
            raise UsageError(f"offload={self.offload} with {other}",
                             hint="one of the two: both are instead of keeping activations on the GPU, and a graph "
                                  "captures no copies to the host")  # fmt: skip
        if self.fabric == "emulated":
            if self.transport != "gloo":
                raise UsageError(f"transport={self.transport} does not run on fabric=emulated", hint="transport=gloo")
            parse_rate(self.link)
            if self.intra_link != "none":
                parse_rate(self.intra_link, "intra_link")

    @property
    def _shares_slots(self) -> bool:
        """Return whether each rank of a group carries a share of an expert's slots."""
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
        """Return how many parts the batch has, and sequences in each. ranks: with tokens of their own, ranks / tp.

        Raises `UsageError` where numbers do not divide.
        """
        parts = self.parts or ranks
        if parts % ranks:
            raise UsageError(
                f"parts={parts} of a batch do not divide among {ranks} ranks" + (" (of W / tp)" if self.tp > 1 else ""),
                hint="each part is one rank's at a time, so nodes x ranks_per_node / tp divides them: "
                f"of {parts} parts: {_or([n for n in range(1, min(parts, _SHOWN) + 1) if parts % n == 0])}",
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

    def setup(self, env: Mapping[str, str], **bound: Any) -> Setup:
        """Return what the launch of the ranks depends on. env, bound: a profile's, or what was typed."""
        return Setup(
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
        """Make a config. Raises `UsageError` for an unknown key, one that is missing, or a value of another kind."""
        kinds = typing.get_type_hints(cls)
        required = {item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING}
        values = _renamed(values)
        for key in values:
            if key not in kinds:
                raise unknown("key", key, kinds)
        if missing := sorted(required - values.keys()):
            raise UsageError(f"the recipe lacks {missing[0]!r}", hint="compare it with sweeps/train/tiny.yaml")
        return cls(**{key: _typed(key, value, kinds[key]) for key, value in values.items()})

    def changed(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Return keys in which the two would compute different things: (here, there)."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        free = {name for name, key in KEYS.items() if key.free}
        if (self.schedule == _OTHER_SLOTS) != (other.schedule == _OTHER_SLOTS):
            free.discard("schedule")
        if self.schedule == _OTHER_SLOTS:  # whose slices are as many as tp
            free.discard("tp")
        return {key: (mine[key], theirs[key]) for key in mine if key not in free and mine[key] != theirs[key]}


KEYS: dict[str, TrainKey] = keys_of(TrainConfig, TrainKey)
FILES = tuple(name for name, key in KEYS.items() if key.file)


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    return "\nKEYs, each with its default; those without one are in every recipe.\n" + explain(KEYS, GROUPS, width)


def names() -> list[str]:
    """Return the recipes that come with commbench."""
    return sorted(file.stem for file in (recipes.root() / "train").glob("*.yaml"))


def compose(words: Sequence[str], *, first: Mapping[str, Any] | None = None) -> tuple[TrainConfig, dict[str, str]]:
    """Return the settings that [RECIPE] [KEY=VALUE ...] mean, and variables for the ranks (env.NAME=VALUE).

    first: the settings of a run that goes on, in place of a recipe.
    """
    named = first is None and bool(words) and (recipes.is_file(words[0]) or "=" not in words[0])
    recipe, rest = (words[0], list(words[1:])) if named else (DEFAULT, list(words))
    overrides = recipes.parse_overrides(rest)
    if overrides.choices:
        raise unknown("key", next(iter(overrides.choices)), typing.get_type_hints(TrainConfig))
    typed = {}
    for key, values in _renamed(overrides.values, said=True).items():
        if len(values) != 1:
            raise UsageError(f"{key} takes one value, not {len(values)}", hint="start one training for each")
        typed[key] = _absolute(values[0]) if key in FILES else values[0]
    env = {name: values[0] for name, values in overrides.env.items()}
    base = dict(first) if first is not None else {"recipe": Path(recipe).stem, **_renamed(_read(recipe), said=True)}
    base |= {key: _absolute(base[key]) for key in FILES if key in base}
    config = TrainConfig.of({**base, **typed})
    if config.fabric != "emulated" and (idle := [key for key in _OF_FABRIC if key in typed]):
        raise UsageError(f"{idle[0]} is set, but has no effect in this training", hint="it belongs to fabric=emulated")
    # Who goes on may have another number of ranks.
    return config.settled(), env


def _renamed(values: Mapping[str, Any], *, said: bool = False) -> dict[str, Any]:
    """Return settings by the keys of today. said: an old name is told on stderr. Raises `UsageError` for both names."""
    for old, new in ALIASES.items():
        if old in values and new in values:
            raise UsageError(f"{old} and {new} are one key", hint=f"{new} alone: {old} is its old name")
        if said and old in values:
            _say_renamed(old, new)
    return {ALIASES.get(key, key): value for key, value in values.items()}


@functools.cache  # once, though both arms of an A/B have it
def _say_renamed(old: str, new: str) -> None:
    stderr_console().print(f"note: {old} is called {new} now; the old name goes with the next release")


def _absolute(value: Any) -> Any:
    return None if value is None else str(Path(str(value)).absolute())


def load(path: Path) -> TrainConfig:
    """Read a run folder's config.json. Raises `CorruptFile`."""
    try:
        values = parse_json(unseal(path.read_bytes()))
        check_types(values, {})
        return TrainConfig.of(values)
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = recipes.reason(error)
        raise UsageError(f"recipe {recipe!r}: {why}", hint="compare it with sweeps/train/tiny.yaml") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"recipe file {recipe!r} has no keys", hint="compare it with sweeps/train/tiny.yaml")
    return values


def _typed(key: str, value: Any, kind: Any) -> Any:
    """Return `value` as `kind`: 1 is a float too, and true is no number."""
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
