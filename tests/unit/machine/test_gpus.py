"""GPUs as the driver tells of them, with a driver that is made up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from commbench.machine import gpus, metadata
from commbench.machine.gpu_health import GpuHealth, NvlinkErrors, PcieLink, RemappedRows
from commbench.machine.gpus import Gpu, Gpus
from commbench.sweep.prepare import machine_text

GI = 1 << 30
UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33")
FIRST = {"name": "H9", "uuid": UUIDS[0], "memory_bytes": 16 * GI, "driver": "570.1"}
CONSTANTS = {
    "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1, "NVML_VOLATILE_ECC": 0, "NVML_CLOCK_SM": 1, "NVML_TEMPERATURE_GPU": 0,
    "NVML_NVLINK_MAX_LINKS": 6, "NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON": 90,
}  # fmt: skip


class NVMLError(Exception):
    pass


def refuse(*_: Any) -> Any:
    raise NVMLError("Not Supported")


def fake_nvml(**functions: Any) -> SimpleNamespace:
    """One GPU of an old kind, whose driver returns bytes; handles are indices."""
    functions = {
        "Init": lambda: None, "Shutdown": lambda: None, "SystemGetDriverVersion": lambda: b"470.1",
        "DeviceGetCount": lambda: 1, "DeviceGetHandleByIndex": lambda index: index, "DeviceGetName": lambda _: b"T4",
        "DeviceGetMemoryInfo": lambda _: SimpleNamespace(total=16 * GI), "DeviceGetMigMode": refuse,
        "DeviceGetPersistenceMode": lambda _: 0, "DeviceGetEccMode": lambda _: [1, 1],
        "DeviceGetTotalEccErrors": refuse, "DeviceGetNvLinkState": refuse,
        "DeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=9), SimpleNamespace(pid=8)],
        "DeviceGetGraphicsRunningProcesses": lambda _: [SimpleNamespace(pid=9)],
        "DeviceGetEnforcedPowerLimit": lambda _: 70000, **functions,
    }  # fmt: skip
    return SimpleNamespace(
        NVMLError=NVMLError, **CONSTANTS, **{f"nvml{n}": function for n, function in functions.items()}
    )


def modern(**functions: Any) -> SimpleNamespace:
    """Three GPUs that tell everything: four NVLinks each, of which one is down."""

    def handle(uuid: str) -> int | str:
        if uuid.startswith("MIG-"):
            return uuid if uuid in ("MIG-1", "MIG-2") else refuse()
        return UUIDS.index(uuid) if uuid in UUIDS else refuse()

    def fields(_: int, wanted: list[int]) -> list[SimpleNamespace]:
        assert wanted == [90]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=26562))]

    return fake_nvml(**{
        "SystemGetDriverVersion": lambda: "570.1", "DeviceGetCount": lambda: 3, "DeviceGetName": lambda _: "H9",
        "DeviceGetUUID": lambda index: UUIDS[index], "DeviceGetHandleByUUID": handle,
        "DeviceGetPciInfo": lambda index: SimpleNamespace(busId=f"00000000:0{index}:00.0".encode()),
        "DeviceGetNvLinkState": lambda _, link: int(link < 3) if link < 4 else refuse(), "DeviceGetFieldValues": fields,
        "DeviceGetClockInfo": lambda *_: 1755, "DeviceGetMaxClockInfo": lambda *_: 1980,
        "DeviceGetCurrentClocksThrottleReasons": lambda _: 0x45, "DeviceGetTemperature": lambda *_: 61,
        "DeviceGetPowerUsage": lambda _: 412500, **functions,
    })  # fmt: skip


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Puts a made-up pynvml in the place of the real one."""
    gpus._kept_open.cache_clear()
    yield lambda library: monkeypatch.setitem(sys.modules, "pynvml", library)
    gpus._kept_open.cache_clear()


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without NVML, which this one may not be."""
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr("commbench.machine.gpus._LIBRARY", "libno-such-library.so.1")
    gpus._kept_open.cache_clear()


def test_an_old_gpu_tells_what_it_can(driver: Callable[[Any], None]) -> None:
    driver(fake_nvml())
    # Functions that this nvidia-ml-py does not have, and those that the GPU refuses, are None.
    gpu = Gpu(name="T4", memory_bytes=16 * GI, persistence=False, ecc=True, processes=(8, 9), power_limit_w=70.0)
    assert gpus.read() == Gpus(driver="470.1", gpus=(gpu,))
    assert gpus.condition(0) == dict.fromkeys(("clock_mhz", "max_clock_mhz", "slowed_by", "temperature_c", "power_w"))


def test_a_modern_gpu_tells_all(driver: Callable[[Any], None]) -> None:
    driver(modern())
    gpu = gpus.read().gpus[2]
    assert (gpu.uuid, gpu.pci_bus_id) == ("GPU-bb33", "00000000:02:00.0")
    assert (gpu.nvlinks, gpu.nvlink_gbps) == (3, 26.562)
    assert (gpu.temperature_c, gpu.power_w, gpu.slowed_by) == (61, 412.5, 0x45)
    driver(modern(DeviceGetFieldValues=lambda *_: [SimpleNamespace(nvmlReturn=3)]))
    assert (gpus.read().gpus[0].nvlinks, gpus.read().gpus[0].nvlink_gbps) == (3, None)
    driver(modern(DeviceGetNvLinkState=lambda *_: 0))
    assert (gpus.read().gpus[0].nvlinks, gpus.read().gpus[0].nvlink_gbps) == (0, None)


def test_the_health_of_a_gpu(driver: Callable[[Any], None]) -> None:
    """Counters are added over the links that are up: three of four. What is not reported is None."""
    driver(modern())
    assert gpus.read().gpus[0].health == GpuHealth(nvlinks_down=1)
    counters = {0: 2, 1: 0, 2: 5, 3: 1}
    library = modern(
        DeviceGetRemappedRows=lambda _: [1, 2, 0, 1],
        DeviceGetNvLinkErrorCounter=lambda _, link, counter: counters[counter] + (link == 0),
        DeviceGetCurrPcieLinkWidth=lambda _: 8, DeviceGetMaxPcieLinkWidth=lambda _: 16,
        DeviceGetCurrPcieLinkGeneration=lambda _: 1, DeviceGetMaxPcieLinkGeneration=lambda _: 5,
    )  # fmt: skip
    for number, end in enumerate(("REPLAY", "RECOVERY", "CRC_FLIT", "CRC_DATA")):
        setattr(library, f"NVML_NVLINK_ERROR_DL_{end}", number)
    driver(library)
    assert gpus.read().gpus[0].health == GpuHealth(
        remapped=RemappedRows(corrected=1, uncorrected=2, pending=False, failed=True), nvlinks_down=1,
        nvlink_errors=NvlinkErrors(recovered=1, replayed=7, crc=20),
        pcie=PcieLink(width=8, most=16, generation=1, most_generation=5),
    )  # fmt: skip
    library.nvmlDeviceGetNvLinkErrorCounter = lambda _, link, counter: 4 if counter == 1 else refuse()
    library.nvmlDeviceGetCurrPcieLinkWidth = refuse
    health = gpus.read().gpus[0].health
    assert (health.nvlink_errors, health.pcie) == (NvlinkErrors(recovered=12), None)


@pytest.mark.parametrize("error", [NVMLError("Driver Not Loaded"), OSError("Driver Not Loaded")])
def test_no_gpus_to_ask(error: Exception, driver: Callable[[Any], None]) -> None:
    def fail() -> None:
        raise error

    driver(modern(Init=fail))
    assert gpus.read() == Gpus(reason="Driver Not Loaded")
    assert (gpus.identity(), gpus.count({}), gpus.condition(0)) == ([], 0, {})
    driver(None)
    assert gpus.read() == Gpus(reason="nvidia-ml-py is not installed", installed=False)
    driver(SimpleNamespace())  # another package of that name
    assert gpus.read().gpus == () and "nvmlInit" in gpus.read().reason
    assert (gpus.identity(), gpus.count({}), gpus.condition("GPU-aa11")) == ([], 0, {})


def test_without_the_drivers_library_nothing_is_imported(nothing: None) -> None:
    assert gpus.read() == Gpus(reason="no libno-such-library.so.1")
    assert (gpus.identity(), gpus.count({}), gpus.condition(0)) == ([], 0, {})
    assert "pynvml" not in sys.modules


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3), ("", 0), ("-1", 0), ("0", 1), ("2, 0", 2), ("0,1,2", 3), ("0,7,1", 1), ("0,-1,1", 1), ("0,,1", 1),
        ("x", 0), ("1,1", 0), ("GPU-aa11,GPU-bb33", 2), ("GPU-b", 1), ("GPU-aa", 0), ("GPU-bb33,GPU-zz,GPU-aa11", 1),
        ("GPU-bb33,GPU-b", 0), ("GPU-bb33,0", 1), ("0,GPU-bb33", 1), ("MIG-1", 1), ("MIG-1,MIG-2", 2),
        ("MIG-1,MIG-9,MIG-2", 1), ("MIG-1,0", 1),
    ],
)  # fmt: skip
def test_cuda_visible_devices(visible: str | None, count: int, driver: Callable[[Any], None]) -> None:
    driver(modern())
    assert gpus.count({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == count


def test_which_gpus_a_process_sees(driver: Callable[[Any], None]) -> None:
    # Whatever part of a GPU (MIG) it is, its place on the bus is that of the whole.
    whole = {"DeviceGetDeviceHandleFromMigDeviceHandle": lambda _: 2}
    driver(modern(**whole, DeviceGetUUID=lambda gpu: gpu if isinstance(gpu, str) else UUIDS[gpu].encode()))
    every = [(uuid, f"00000000:0{index}:00.0") for index, uuid in enumerate(UUIDS)]
    assert gpus.visible({}) == every
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-aa11"}) == [every[2], every[0]], "in the order asked"
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": "2,0,9,1"}) == [every[2], every[0]]
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": "MIG-1"}) == [("MIG-1", every[2][1])]
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": ""}) == gpus.visible({"CUDA_VISIBLE_DEVICES": "1,1"}) == []
    driver(modern(DeviceGetCount=refuse))
    assert gpus.visible({}) == []


def test_nvml_is_closed_after_each_question_and_kept_open_for_conditions(driver: Callable[[Any], None]) -> None:
    calls: list[str] = []
    driver(modern(Init=lambda: calls.append("init"), Shutdown=lambda: calls.append("shutdown")))
    assert gpus.count({}) == 3 and len(gpus.identity()) == 3
    assert calls == ["init", "shutdown"] * 2
    expected = {
        "clock_mhz": 1755, "max_clock_mhz": 1980, "slowed_by": ["power limit", "temperature (hardware)"],
        "temperature_c": 61, "power_w": 412.5,
    }  # fmt: skip
    calls.clear()
    for name in ("GPU-bb33", "bb33", 2, 2, "bb33"):
        assert gpus.condition(name) == expected
    assert calls == ["init"] * 3, "once for each name"
    assert gpus.condition("GPU-zz") == {}


def test_reasons_under_their_newer_name(driver: Callable[[Any], None]) -> None:
    driver(modern(DeviceGetCurrentClocksThrottleReasons=refuse, DeviceGetCurrentClocksEventReasons=lambda _: 1))
    assert gpus.condition(0)["slowed_by"] == []
    driver(modern(DeviceGetCurrentClocksThrottleReasons=refuse))
    gpus._kept_open.cache_clear()
    assert gpus.condition(0)["slowed_by"] is None


def test_what_a_run_keeps_of_its_gpus(driver: Callable[[Any], None], nothing: None) -> None:
    before = metadata.collect()
    assert before["gpus"] is None
    old = {key: value for key, value in before.items() if key != "gpus"}  # of a run that did not ask
    assert metadata.differences(old, before) == []
    assert machine_text(before) == machine_text(old) and " x " not in machine_text(before)

    driver(modern())
    now = metadata.collect()
    assert now["gpus"][0] == FIRST and len(now["gpus"]) == 3
    assert metadata.differences(json.loads(json.dumps(now)), now) == []
    (changed,) = metadata.differences(before, now)
    assert changed.startswith("gpus was None, is [{'name': 'H9'")
    assert f", {now['machine']}, 3 x H9, Python " in machine_text(now)
