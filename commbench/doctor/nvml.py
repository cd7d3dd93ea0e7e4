"""NVIDIA's GPUs as the driver describes them (NVML, through nvidia-ml-py): nothing is started on them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """None is what this driver, or this GPU, does not tell."""

    name: str
    memory_bytes: int | None = None
    mig: bool | None = None
    persistence: bool | None = None
    ecc: bool | None = None
    ecc_errors: int | None = None  # uncorrected, since the driver was loaded
    processes: tuple[int, ...] = ()
    busy_percent: int | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    slowed_by: int | None = None  # a set of bits: nvmlClocksEventReason...
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""  # why there is none to see
    installed: bool = True  # is nvidia-ml-py?


def read() -> Gpus:
    """Never raises for a missing package, library, driver or GPU."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return Gpus(reason="nvidia-ml-py is not installed", installed=False)
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return Gpus(reason=str(error))
    try:
        driver = _text(library.nvmlSystemGetDriverVersion())
        return Gpus(driver=driver, gpus=tuple(_gpu(library, i) for i in range(library.nvmlDeviceGetCount())))
    except library.NVMLError as error:
        return Gpus(reason=str(error))
    finally:
        library.nvmlShutdown()


def _gpu(library: Any, index: int) -> Gpu:
    device = library.nvmlDeviceGetHandleByIndex(index)

    def ask(function: str, *arguments: int) -> Any:
        try:
            return getattr(library, function)(device, *arguments)
        except (library.NVMLError, AttributeError):  # not supported by this GPU; not known to this nvidia-ml-py
            return None

    def flag(value: Any) -> bool | None:
        """Of a mode, or of the pair (current, pending)."""
        value = value[0] if isinstance(value, list | tuple) else value
        return None if value is None else bool(value)

    def watts(milliwatts: int | None) -> float | None:
        return None if milliwatts is None else milliwatts / 1000

    memory = ask("nvmlDeviceGetMemoryInfo")
    utilization = ask("nvmlDeviceGetUtilizationRates")
    processes = (ask("nvmlDeviceGetComputeRunningProcesses") or []) + (
        ask("nvmlDeviceGetGraphicsRunningProcesses") or []
    )
    return Gpu(
        name=_text(ask("nvmlDeviceGetName") or "unknown"),
        memory_bytes=memory.total if memory else None,
        mig=flag(ask("nvmlDeviceGetMigMode")),
        persistence=flag(ask("nvmlDeviceGetPersistenceMode")),
        ecc=flag(ask("nvmlDeviceGetEccMode")),
        ecc_errors=ask(
            "nvmlDeviceGetTotalEccErrors", library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC
        ),
        processes=tuple(sorted({process.pid for process in processes})),
        busy_percent=utilization.gpu if utilization else None,
        clock_mhz=ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
        max_clock_mhz=ask("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM),
        slowed_by=ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        power_limit_w=watts(ask("nvmlDeviceGetEnforcedPowerLimit")),
        default_power_limit_w=watts(ask("nvmlDeviceGetPowerManagementDefaultLimit")),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # old versions return bytes
