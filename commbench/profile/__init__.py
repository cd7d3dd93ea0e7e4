"""Profile: what tuning has learnt on one system, in one JSON file that other programs load.

A profile has *scopes*, each a set-up that was tuned (transport, versions, GPU, layout, fabric, launch settings), and
*choices*: for a collective and a range of sizes of one scope, the algorithm that was proven better there than the
default, or the default itself. Ranges have no gaps, and the last one is open. docs/reference/profile.md describes every
field; docs/reference/profile.schema.json is the same for machines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from commbench.algorithms.outside import OutsideAlgorithm
from commbench.records import NOMINAL
from commbench.spec import Value
from commbench.stats import Verdict

FORMAT = "commbench-profile"
# History of the format:
# 1  first version
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where choices hold. What is empty or null is not asked for; the scope that asks for most wins."""

    id: str  # by which choices name it
    transport: str
    nodes: int | None
    ranks_per_node: int | None
    versions: dict[str, str] = field(default_factory=dict)  # of loaded libraries: torch, nccl, mpi
    gpu: str = ""  # model, as the driver names it
    # Of an emulated one, its settings; declared, virtual: the nodes were no machines of their own; "" is a real one.
    fabric: str = ""
    # How ranks have to be started: `commbench exec` and the exports do it.
    env: dict[str, str] = field(default_factory=dict)  # "unset": without the variable
    binding: str = "none"
    cpu_masks: str = ""  # of binding=explicit
    binding_memory: bool = True

    @property
    def fabric_text(self) -> str:
        """Return `emulated: 1gbit links` or `declared on one machine`; "" of a real one."""
        return NOMINAL.get(self.fabric, f"emulated: {self.fabric}" if self.fabric else "")

    def __str__(self) -> str:
        layout = f"{self.nodes or 'any'} node{'' if self.nodes == 1 else 's'} x {self.ranks_per_node or 'any'} ranks"
        words = [self.transport, *(f"{name} {version}" for name, version in self.versions.items()), self.gpu, layout]
        words += [self.fabric_text]
        words += [f"binding={self.binding}" if self.binding != "none" else ""]
        words += [f"{name}={value}" for name, value in self.env.items()]
        return ", ".join(word for word in words if word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a choice was made at one size: the chosen algorithm against the default, in launches that measured both."""

    size_bytes: int
    dtype: str
    default: str  # its label
    default_us: float  # medians over launches
    chosen_us: float
    ratio: float  # default / chosen, launch by launch (Hodges-Lehmann): above 1 the choice is faster
    low: float | None  # its 95 % interval; null: not estimable
    high: float | None
    interval_of: str | None
    pairs: int  # launches, or pairs of adjacent launches, that measured both
    p: float | None  # one-sided, of no gain, by Wilcoxon's signed-rank test; Holm-adjusted over all that is claimed
    apparent: float | None  # of the A-A control at this size: the default against itself, which has no gain
    candidates: int  # algorithms, with parameters and start of ranks, that were searched
    run: str  # the id of the run folder that holds the samples
    verdict: str  # "confirmed"; else why the default was kept

    @property
    def confirmed(self) -> bool:
        """Return whether the choice was proven better than the default at this size."""
        return self.verdict == Verdict.CONFIRMED


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmConfig:
    """An algorithm with its parameters."""

    algorithm: str
    params: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join([self.algorithm, *(f"{key}={value}" for key, value in self.params.items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The algorithm to take for a collective whose size is in `min_bytes .. max_bytes`, both included.

    `size_bytes` is nccl-tests' size column: max(bytes sent, bytes received) by one rank, own share included.
    """

    scope: str  # id
    collective: str
    min_bytes: int
    max_bytes: int | None  # null: open
    algorithm: str
    params: dict[str, int] = field(default_factory=dict)
    buffers: str = "plain"  # that the algorithm needs: `Communicator.empty` makes them
    on_plain: AlgorithmConfig | None = None  # the best one on buffers from elsewhere, where the choice needs others
    captured: bool = False  # for calls in a CUDA graph
    arguments: dict[str, Value] = field(default_factory=dict)  # of the collective: tp, tp_input, op
    scratch_bytes: int = 0  # per rank, at the largest size that was tuned
    multiprocessors: int | None = None  # of a GPU, that it takes at the most; null: the library chooses, or no GPU
    evidence: list[Evidence] = field(default_factory=list)  # ascending sizes; none where nothing was tuned

    @property
    def config(self) -> AlgorithmConfig:
        return AlgorithmConfig(algorithm=self.algorithm, params=self.params)

    @property
    def label(self) -> str:
        return self.config.label


def name_collective(choice: Choice, among: Iterable[Choice]) -> str:
    """Return `dispatch payload=fp8 captured`: the collective, with the arguments in which choices for it differ."""
    alike = [other.arguments for other in among if other.collective == choice.collective]
    keys = dict.fromkeys(key for arguments in alike for key in arguments)
    differing = [key for key in keys if len({str(arguments.get(key)) for arguments in alike}) > 1]
    words = [f"{key}={choice.arguments.get(key, 'none')}" for key in differing]
    return " ".join([choice.collective, *words, *(["captured"] if choice.captured else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A candidate that was not taken, and why."""

    scope: str
    collective: str
    label: str  # the algorithm, with its buffers and launch settings where they are not the default
    sizes: list[int]
    why: str  # wrong_result, timeout, out_of_memory, error, skipped; slower, pruned, not confirmed
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    scopes: list[Scope]
    choices: list[Choice]
    refused: list[Refused] = field(default_factory=list)
    created: str = ""  # UTC, ISO 8601
    commbench_version: str = ""
    machine: str = ""  # one line
    command: list[str] = field(default_factory=list)
    minimum_gain: float = 0.03  # that the lower end of an interval had to show
    seconds: float = 0.0  # that tuning took
    # Of choices whose algorithms are none of commbench's: which file or package has them, and its digest.
    outside: list[OutsideAlgorithm] = field(default_factory=list)

    def scope(self, id: str) -> Scope:
        return next(scope for scope in self.scopes if scope.id == id)

    def of_scope(self, id: str) -> list[Choice]:
        return [choice for choice in self.choices if choice.scope == id]
