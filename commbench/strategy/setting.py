"""Setting: one strategy; Settings: many of them as columns. The tables of what a column may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
SPLIT, DUPLICATE, DROP = "split", "duplicate", "drop"  # what tensor-parallel ranks hold of tokens before an exchange


class LayerSchedule(NamedTuple):
    """How an expert layer sends and computes. tokens: `split`: each tensor-parallel rank has its part (sequence
    parallelism); `duplicate`: all have and send the same ones; `drop`: all have the same, and each sends its part.

    chunks: of what is in flight beside something else; 1: one thing after the other.
    """

    name: str
    chunks: int = 1
    tokens: str = SPLIT

    @property
    def label(self) -> str:
        """`pipelined(4)`."""
        return f"{self.name}({self.chunks})" if self.chunks > 1 else self.name


# Of moe_ref (docs/guide/schedules.md), and `overlap_1f1b`: Megatron's exchanges of one micro-batch beside the compute
# of another (--overlap-moe-expert-parallel-comm).
SCHEDULES: tuple[LayerSchedule, ...] = (
    LayerSchedule("sequential"),
    LayerSchedule("pipelined", 2),
    LayerSchedule("pipelined", 4),
    LayerSchedule("expert_groups", 2),
    LayerSchedule("expert_groups", 4),
    LayerSchedule("overlap_1f1b"),
    LayerSchedule("duplicate", 1, DUPLICATE),
    LayerSchedule("drop", 1, DROP),
    LayerSchedule("drop_pipelined", 2, DROP),
    LayerSchedule("drop_pipelined", 4, DROP),
    LayerSchedule("drop_pipelined", 8, DROP),
    LayerSchedule("parm_s1", 1, DROP),
    LayerSchedule("parm_s2", 1, DROP),
)
# Of tokens: `per_choice` as one exchange, or in two hops as `2d_intra_first`; what travels once for a rank or a node.
EXCHANGES: tuple[str, ...] = ("per_choice", "2d_intra_first", "per_rank", "per_node", "all_gather")
# selective: norms and activation functions again; redo: whole layers; stash: all but exchanges.
RECOMPUTE: tuple[str, ...] = ("none", "selective", "redo", "stash")
ZERO: tuple[int, ...] = (0, 1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One strategy. tp x pp x cp x dp is the number of GPUs, and so is etp x ep x edp x pp (parallel folding).

    vpp: parts of a stage (interleaved 1F1B). micro_batch: sequences. schedule, exchange, recompute: as in the tables.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    edp: int = 1
    micro_batch: int = 1
    schedule: LayerSchedule = SCHEDULES[0]
    exchange: str = EXCHANGES[0]
    zero: int = 1
    recompute: str = "none"

    @property
    def gpus(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def label(self) -> str:
        """`tp2 pp4 ep8 etp1 dp4 mb1`, sizes of 1 left out, and what differs from the plainest."""
        sizes = [
            f"{name}{value}"
            for name in ("tp", "cp", "pp", "vpp", "dp", "ep", "etp")
            if (value := getattr(self, name)) > 1
        ]
        words = [self.schedule.label] if self.ep > 1 or self.schedule.tokens != SPLIT else []
        words += [self.exchange] if self.exchange != EXCHANGES[0] else []
        words += [f"zero{self.zero}"] if self.zero != 1 else []
        words += [f"recompute={self.recompute}"] if self.recompute != "none" else []
        return " ".join([*sizes, f"mb{self.micro_batch}", *words])


_NUMBERS = ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch", "zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Many strategies: of each column one number for each, all of them int64 [n].

    schedule, exchange, recompute: places in the tables `SCHEDULES`, `EXCHANGES`, `RECOMPUTE`.
    """

    tp: Ints
    cp: Ints
    dp: Ints
    pp: Ints
    vpp: Ints
    ep: Ints
    etp: Ints
    edp: Ints
    micro_batch: Ints
    zero: Ints
    schedule: Ints
    exchange: Ints
    recompute: Ints

    def __len__(self) -> int:
        return len(self.tp)

    def __getitem__(self, place: int) -> Setting:
        numbers = {name: int(getattr(self, name)[place]) for name in _NUMBERS}
        return Setting(
            **numbers,
            schedule=SCHEDULES[int(self.schedule[place])],
            exchange=EXCHANGES[int(self.exchange[place])],
            recompute=RECOMPUTE[int(self.recompute[place])],
        )

    @classmethod
    def of(cls, settings: Iterable[Setting]) -> Self:
        """Return columns of these, in their order."""
        all_of = list(settings)
        return cls(
            **{name: _ints([getattr(one, name) for one in all_of]) for name in _NUMBERS},
            schedule=_ints([SCHEDULES.index(one.schedule) for one in all_of]),
            exchange=_ints([EXCHANGES.index(one.exchange) for one in all_of]),
            recompute=_ints([RECOMPUTE.index(one.recompute) for one in all_of]),
        )

    def take(self, places: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> Self:
        """Return the settings at these places, or those that are marked."""
        return dataclasses.replace(
            self, **{item.name: getattr(self, item.name)[places] for item in dataclasses.fields(self)}
        )

    def tokens_are(self, kind: str) -> npt.NDArray[np.bool_]:
        """Return of each whether its schedule holds tokens so: `split`, `duplicate`, `drop`."""
        return np.array([one.tokens == kind for one in SCHEDULES])[self.schedule]

    def schedule_is(self, *names: str) -> npt.NDArray[np.bool_]:
        """Return of each whether its schedule has one of these names."""
        return np.array([one.name in names for one in SCHEDULES])[self.schedule]

    @property
    def chunks(self) -> Ints:
        """Chunks of each one's schedule."""
        return np.array([one.chunks for one in SCHEDULES], dtype=np.int64)[self.schedule]

    def exchange_is(self, name: str) -> npt.NDArray[np.bool_]:
        return np.asarray(self.exchange == EXCHANGES.index(name))

    def recompute_is(self, *names: str) -> npt.NDArray[np.bool_]:
        return np.isin(self.recompute, [RECOMPUTE.index(name) for name in names])


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)
