"""NVIDIA's GPUs as the driver describes them (NVML, through nvidia-ml-py): nothing is started on them.

Nothing here raises for a missing package, library, driver or GPU, and where there is no driver nothing is imported.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from commbench.machine import gpu_health
from commbench.machine.gpu_health import GpuHealth

# Bits of nvmlClocksEventReasons that cost speed. Idle, application clocks and display are no loss.
_SLOWED_BY = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x10: "slowest GPU of a synchronised group",
    0x20: "temperature (driver)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
_SWITCHES = (2, 255, None)  # kinds of a link's other end: a switch, one of no known kind, not reported
_P2P_OVER_NVLINK = 2
_LIBRARY = "libnvidia-ml.so.1"
_Ask = Callable[..., Any]  # a function's name and its arguments after the device; None where it is not reported


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; None is what this driver, or this GPU, does not report."""

    name: str
    uuid: str | None = None
    pci_bus_id: str | None = None
    numa_node: int | None = None  # whose memory is nearest
    memory_bytes: int | None = None
    mig: bool | None = None
    persistence: bool | None = None
    ecc: bool | None = None
    ecc_errors: int | None = None  # uncorrected, since the driver was loaded
    nvlinks: int | None = None  # that are up
    nvlink_gbps: float | None = None  # GB/s of one of them in one direction, as the line runs
    processes: tuple[int, ...] = ()
    busy_percent: int | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    slowed_by: int | None = None  # a set of bits: see `slowdowns`
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    health: GpuHealth = field(default_factory=GpuHealth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""  # why there is none to see
    installed: bool = True  # is nvidia-ml-py?


def read() -> Gpus:
    """Return all that the driver reports of all GPUs of this machine. Never raises."""
    try:
        with _opened() as library:
            driver = _text(library.nvmlSystemGetDriverVersion())
            return Gpus(driver=driver, gpus=tuple(_gpu(library, i) for i in range(library.nvmlDeviceGetCount())))
    except ImportError:
        return Gpus(reason="nvidia-ml-py is not installed", installed=False)
    except Exception as error:  # of NVML, or of another package that calls itself pynvml
        return Gpus(reason=str(error) or type(error).__name__)


def identity() -> list[dict[str, Any]]:
    """Return which GPUs these are: what must be the same for results to belong together."""
    reading = read()
    return [
        {"name": gpu.name, "uuid": gpu.uuid, "memory_bytes": gpu.memory_bytes, "driver": reading.driver}
        for gpu in reading.gpus
    ]


def count(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many GPUs a process that starts with this environment can use, by the driver. Never raises."""
    try:
        with _opened() as library:
            total: int = library.nvmlDeviceGetCount()
            wanted = environ.get("CUDA_VISIBLE_DEVICES")
            return total if wanted is None else len(_visible(library, wanted, total))
    except Exception:
        return 0


def visible(environ: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """Return UUID and PCI bus id of the GPUs that a process with this environment can use. Never raises.

    In the order of CUDA_DEVICE_ORDER=PCI_BUS_ID, which is CUDA's own where all GPUs are of one model.
    """
    try:
        with _opened() as library:
            total: int = library.nvmlDeviceGetCount()
            wanted = environ.get("CUDA_VISIBLE_DEVICES")
            chosen = range(total) if wanted is None else _visible(library, wanted, total)
            return [_identify(library, gpu) for gpu in chosen]
    except Exception:
        return []


def condition(gpu: int | str) -> dict[str, Any]:
    """Return what the speed of a GPU depends on, now. It takes a millisecond: for use before and after a launch.

    `gpu` is a UUID, with or without "GPU-", or NVML's index: CUDA may count in another order, and counts only the GPUs
    that CUDA_VISIBLE_DEVICES leaves it. Empty where nothing is reported. Never raises.
    """
    try:
        library, device = _kept_open(os.getpid(), gpu)
        ask = _asker(library, device)
        slowed_by = _slowed_by(ask)
        return {
            "clock_mhz": ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
            "max_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM),
            "slowed_by": None if slowed_by is None else slowdowns(slowed_by),
            "temperature_c": ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
            "power_w": _watts(ask("nvmlDeviceGetPowerUsage")),
        }
    except Exception:
        return {}


def nvlinks() -> dict[tuple[int, int], int]:
    """Return how many NVLinks join two GPUs, by their places in `read().gpus`, the lower first. Never raises.

    Through switches every GPU reaches every other with all its links, so that the count is the smaller one of the two.
    """
    try:
        with _opened() as library:
            return _nvlinks(library)
    except Exception:
        return {}


def slowdowns(bits: int) -> list[str]:
    """Return the reasons in `Gpu.slowed_by`, in words."""
    return [reason for bit, reason in _SLOWED_BY.items() if bits & bit]


def _library() -> Any:
    """Return pynvml. The driver's own library is looked for first, as the import takes 50 ms."""
    if "pynvml" not in sys.modules:
        try:
            ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise RuntimeError(f"no {_LIBRARY}") from error
    return importlib.import_module("pynvml")


@contextmanager
def _opened() -> Iterator[Any]:
    library = _library()
    library.nvmlInit()
    try:
        yield library
    finally:
        library.nvmlShutdown()


@functools.cache
def _kept_open(pid: int, gpu: int | str) -> tuple[Any, Any]:
    """Return NVML and its handle of a GPU, for the rest of this process; `pid`, as a forked rank must open its own."""
    library = _library()
    library.nvmlInit()
    if isinstance(gpu, int):
        return library, library.nvmlDeviceGetHandleByIndex(gpu)
    return library, library.nvmlDeviceGetHandleByUUID(gpu if gpu.startswith(("GPU-", "MIG-")) else f"GPU-{gpu}")


def _visible(library: Any, words: str, total: int) -> list[int | str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES=`words` leaves, by CUDA's rules.

    The list ends before its first unknown entry, or the first of another kind; naming a GPU twice hides all.
    """
    kinds: set[str] = set()
    chosen: list[int | str] = []
    for word in words.split(","):
        kind, gpu = _named(library, word.strip(), total)
        kinds.add(kind)
        if gpu is None or len(kinds) > 1:
            break
        if gpu in chosen:
            return []
        chosen.append(gpu)
    return chosen


def _identify(library: Any, gpu: int | str) -> tuple[str, str]:
    """Return a GPU's UUID and bus id. A part of a GPU (MIG) has a UUID of its own, and the place of the whole."""
    if isinstance(gpu, int):
        whole = device = library.nvmlDeviceGetHandleByIndex(gpu)
    else:
        device = library.nvmlDeviceGetHandleByUUID(gpu)
        whole = library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
    return _text(library.nvmlDeviceGetUUID(device)), _text(library.nvmlDeviceGetPciInfo(whole).busId)


def _named(library: Any, word: str, total: int) -> tuple[str, int | str | None]:
    """Return how `word` names a GPU, and which one; None for none."""
    if word.startswith("MIG-"):
        try:
            library.nvmlDeviceGetHandleByUUID(word)
        except library.NVMLError:
            return "mig", None
        return "mig", word
    if word.startswith("GPU-"):  # the beginning is enough, where it fits one GPU only
        handles = map(library.nvmlDeviceGetHandleByIndex, range(total))
        fitting = [i for i, handle in enumerate(handles) if _text(library.nvmlDeviceGetUUID(handle)).startswith(word)]
        return "uuid", fitting[0] if len(fitting) == 1 else None
    number = re.match(r"\+?\d+", word)
    index = int(number[0]) if number else -1
    return "index", index if 0 <= index < total else None


def _gpu(library: Any, index: int) -> Gpu:
    device = library.nvmlDeviceGetHandleByIndex(index)
    ask = _asker(library, device)
    memory = ask("nvmlDeviceGetMemoryInfo")
    pci = ask("nvmlDeviceGetPciInfo")
    utilization = ask("nvmlDeviceGetUtilizationRates")
    processes = (ask("nvmlDeviceGetComputeRunningProcesses") or []) + (
        ask("nvmlDeviceGetGraphicsRunningProcesses") or []
    )
    links = [ask("nvmlDeviceGetNvLinkState", link) for link in range(library.NVML_NVLINK_MAX_LINKS)]
    up = [bool(state) for state in links if state is not None]  # None: there is no such link
    return Gpu(
        name=_text(ask("nvmlDeviceGetName") or "unknown"),
        uuid=_text(ask("nvmlDeviceGetUUID")),
        pci_bus_id=_bus_id(pci),
        numa_node=_first_bit(ask("nvmlDeviceGetMemoryAffinity", 16, 0)),
        memory_bytes=memory.total if memory else None,
        mig=_flag(ask("nvmlDeviceGetMigMode")),
        persistence=_flag(ask("nvmlDeviceGetPersistenceMode")),
        ecc=_flag(ask("nvmlDeviceGetEccMode")),
        ecc_errors=ask(
            "nvmlDeviceGetTotalEccErrors", library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC
        ),
        nvlinks=sum(up) if up else None,
        nvlink_gbps=_link_gbps(library, ask) if any(up) else None,
        processes=tuple(sorted({process.pid for process in processes})),
        busy_percent=utilization.gpu if utilization else None,
        clock_mhz=ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
        max_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM),
        slowed_by=_slowed_by(ask),
        temperature_c=ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
        power_w=_watts(ask("nvmlDeviceGetPowerUsage")),
        power_limit_w=_watts(ask("nvmlDeviceGetEnforcedPowerLimit")),
        default_power_limit_w=_watts(ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        health=gpu_health.read(library, ask, links),
    )


def _nvlinks(library: Any) -> dict[tuple[int, int], int]:
    handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    asks = [_asker(library, handle) for handle in handles]
    places = {_bus_id(ask("nvmlDeviceGetPciInfo")): place for place, ask in enumerate(asks)}
    straight: Counter[tuple[int, int]] = Counter()
    switched: Counter[int] = Counter()
    for place, ask in enumerate(asks):
        for link in range(library.NVML_NVLINK_MAX_LINKS):
            if not ask("nvmlDeviceGetNvLinkState", link):
                continue
            remote = _bus_id(ask("nvmlDeviceGetNvLinkRemotePciInfo", link))
            if remote and remote in places:
                straight[place, places[remote]] += 1
            elif ask("nvmlDeviceGetNvLinkRemoteDeviceType", link) in _SWITCHES:
                switched[place] += 1
    counts = {}
    for first, second in combinations(range(len(handles)), 2):
        count = straight[first, second]
        if not count and asks[first]("nvmlDeviceGetP2PStatus", handles[second], _P2P_OVER_NVLINK) in (None, 0):
            count = min(switched[first], switched[second])
        if count:
            counts[first, second] = count
    return counts


def _asker(library: Any, device: Any) -> _Ask:
    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(library, function)(device, *arguments)
        except (library.NVMLError, AttributeError):  # not supported by this GPU; not known to this nvidia-ml-py
            return None

    return ask


def _slowed_by(ask: _Ask) -> int | None:
    bits: int | None = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    return ask("nvmlDeviceGetCurrentClocksEventReasons") if bits is None else bits  # its newer name


def _link_gbps(library: Any, ask: _Ask) -> float | None:
    for value in ask("nvmlDeviceGetFieldValues", [library.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON]) or ():
        if value.nvmlReturn == 0 and value.value.uiVal:
            return float(value.value.uiVal / 1000)
    return None


def _flag(value: Any) -> bool | None:
    """Return the value of a mode, or of the pair (current, pending)."""
    value = value[0] if isinstance(value, list | tuple) else value
    return None if value is None else bool(value)


def _first_bit(words: Sequence[int] | None) -> int | None:
    """Return the bit that is set in words of 64; None where there is none, or more than one."""
    bits = [64 * place + bit for place, word in enumerate(words or ()) for bit in range(64) if int(word) >> bit & 1]
    return bits[0] if len(bits) == 1 else None


def _bus_id(pci: Any) -> Any:
    return _text(pci.busId) if pci else None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # old versions return bytes
