"""What NVML counts of a GPU's memory and links: rows that were remapped, NVLinks and their errors, the PCIe link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ERRORS = {  # of an NVLink, by the end of their names in NVML
    "recovered": ("RECOVERY",),
    "replayed": ("REPLAY",),
    "crc": ("CRC_FLIT", "CRC_DATA"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemappedRows:
    """Rows of memory that others stand for. pending: some only from the next reset on. failed: no row is left."""

    corrected: int
    uncorrected: int
    pending: bool
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NvlinkErrors:
    """What the links of a GPU have counted, all together, since the driver was loaded or the counters were cleared.

    recovered: times that a link had to be trained anew. replayed: packets sent again. crc: bad checksums.
    """

    recovered: int = 0
    replayed: int = 0
    crc: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PcieLink:
    """How wide and of which generation the link is now, and what GPU and slot can do."""

    width: int
    most: int
    generation: int | None = None
    most_generation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """None is what this driver, or this GPU, does not report."""

    remapped: RemappedRows | None = None
    nvlinks_down: int | None = None
    nvlink_errors: NvlinkErrors | None = None
    pcie: PcieLink | None = None


def read(library: Any, ask: Callable[..., Any], links: list[int | None]) -> GpuHealth:
    """Return what is counted of a GPU. ask: a function's name and arguments; links: of each NVLink, whether it is up,
    None where there is no such link."""
    there = [number for number, state in enumerate(links) if state is not None]
    return GpuHealth(
        remapped=_remapped(ask("nvmlDeviceGetRemappedRows")),
        nvlinks_down=sum(not links[number] for number in there) if there else None,
        nvlink_errors=_nvlink_errors(library, ask, [number for number in there if links[number]]),
        pcie=_pcie(ask),
    )


def _remapped(rows: Any) -> RemappedRows | None:
    if rows is None:
        return None
    corrected, uncorrected, pending, failed = rows
    return RemappedRows(
        corrected=int(corrected), uncorrected=int(uncorrected), pending=bool(pending), failed=bool(failed)
    )


def _nvlink_errors(library: Any, ask: Callable[..., Any], links: list[int]) -> NvlinkErrors | None:
    found: dict[str, int] = {}
    for name, ends in _ERRORS.items():
        counters = [getattr(library, f"NVML_NVLINK_ERROR_DL_{end}", None) for end in ends]
        asked = [ask("nvmlDeviceGetNvLinkErrorCounter", link, counter) for counter in counters if counter is not None
                 for link in links]  # fmt: skip
        if any(count is not None for count in asked):
            found[name] = sum(int(count) for count in asked if count is not None)
    return NvlinkErrors(**found) if found else None


def _pcie(ask: Callable[..., Any]) -> PcieLink | None:
    width, most = ask("nvmlDeviceGetCurrPcieLinkWidth"), ask("nvmlDeviceGetMaxPcieLinkWidth")
    if not width or not most:
        return None
    generations = ask("nvmlDeviceGetCurrPcieLinkGeneration"), ask("nvmlDeviceGetMaxPcieLinkGeneration")
    return PcieLink(width=width, most=most, generation=generations[0], most_generation=generations[1])
