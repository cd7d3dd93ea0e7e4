"""Whether GPUs are sound: memory that failed, links that are slow or err, and errors that the driver has reported."""

from __future__ import annotations

import re
from collections import Counter

from commbench.doctor.finding import Finding, note, ok, plural, some, warn
from commbench.doctor.system import System
from commbench.machine.driver import bus_id
from commbench.machine.gpu_health import PcieLink

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
_OF_PROGRAMS = (13, 31, 43, 45, 68, 69)  # Xids that a program's own mistake causes
_LINKS = "/sys/bus/pci/devices"


def remapped_rows(system: System) -> Finding | None:
    known = {index: gpu.health.remapped for index, gpu in enumerate(system.gpus.gpus) if gpu.health.remapped}
    if not known:
        return None
    failed = [f"GPU {index}" for index, rows in known.items() if rows.failed]
    pending = [f"GPU {index}" for index, rows in known.items() if rows.pending]
    if failed:
        return warn(f"failed: {some(failed)}", "memory fails, and no row is left to stand for it: jobs die",
                    "have the GPU replaced: nvidia-smi -q -d ROW_REMAPPER")  # fmt: skip
    if pending:
        return warn(f"pending: {some(pending)}", "memory has failed, and is in use until the GPU is reset",
                    "end what runs there, and sudo nvidia-smi --gpu-reset, where the machine is yours")  # fmt: skip
    done = [f"GPU {index}: {rows.uncorrected}" for index, rows in known.items() if rows.uncorrected]
    if done:
        return note(f"after uncorrected errors: {some(done)}", "memory has failed before, and others stand for it now",
                    "see whether there are more next week")  # fmt: skip
    return ok("none after uncorrected errors")


def xids(system: System) -> Finding | None:
    """Look for errors that the driver has written to the kernel's log, where this user may read that."""
    if not system.gpus.gpus:
        return None
    try:
        lines = system.kernel_log()
    except OSError:
        return None
    ids = {bus_id(gpu.pci_bus_id or ""): index for index, gpu in enumerate(system.gpus.gpus)}
    found = Counter((_place(match[1], ids), int(match[2])) for line in lines if (match := _XID.search(line)))
    if not found:
        return ok("none in the kernel's log")
    said = [f"{place}: {number}{f' ({count} times)' if count > 1 else ''}" for (place, number), count in found.items()]
    if all(number in _OF_PROGRAMS for _, number in found):
        return note(some(said), "a program did what it must not, such as reading where nothing is",
                    "see the kernel's log: dmesg | grep Xid")  # fmt: skip
    return warn(some(said), "the driver has reported errors of the GPU or its links: results may be slow or missing",
                "look the numbers up in NVIDIA's list of Xid errors: dmesg | grep Xid")  # fmt: skip


def nvlinks(system: System) -> Finding | None:
    listed = list(enumerate(system.gpus.gpus))
    known = [(index, gpu) for index, gpu in listed if gpu.nvlinks is not None]
    if not known:
        return None
    down = [f"GPU {index}: {gpu.health.nvlinks_down} down" for index, gpu in known if gpu.health.nvlinks_down]
    counts = sorted({gpu.nvlinks or 0 for _, gpu in known})
    if down and counts != [0]:
        return warn(some(down), "a GPU with fewer links is slow, and all that exchange with it wait",
                    "see nvidia-smi nvlink -s; reset the GPUs, or have the board looked at")  # fmt: skip
    if len(counts) > 1:
        return warn(f"{counts[0]} to {counts[-1]} links", "the GPU with fewest links is slow, and the others wait",
                    "see nvidia-smi nvlink -s")  # fmt: skip
    errors = [(index, gpu.health.nvlink_errors) for index, gpu in known if gpu.health.nvlink_errors]
    trained = [f"GPU {index}: {plural(found.recovered, 'time')}" for index, found in errors if found.recovered]
    if trained:
        return warn(f"links were trained anew: {some(trained)}", "a link that fails is away for some time, each time",
                    "see nvidia-smi nvlink -e; have the board looked at where the number grows")  # fmt: skip
    sent_again = [f"GPU {index}: {found.replayed + found.crc}" for index, found in errors
                  if found.replayed + found.crc]  # fmt: skip
    value = f"{plural(counts[0], 'link')} of each GPU"
    if sent_again:
        return note(f"{value}; errors that were sent again: {some(sent_again)}", "a few in a month are usual",
                    "see whether the number grows while you measure: nvidia-smi nvlink -e")  # fmt: skip
    if counts == [0]:
        return ok("none is up")
    return ok(f"{value}, no errors" if errors else value)


def pcie(system: System) -> Finding | None:
    links = {}
    for index, gpu in enumerate(system.gpus.gpus):
        link = gpu.health.pcie or _by_sysfs(system, gpu.pci_bus_id)
        if link is not None:
            links[index] = link
    if not links:
        return None
    narrow = [f"GPU {index}: x{link.width} of x{link.most}" for index, link in links.items() if link.width < link.most]
    if narrow:
        return warn(some(narrow), "what goes over PCIe (copies to the host, network cards) takes longer",
                    "put the card into another slot, or seat it anew")  # fmt: skip
    widths = sorted({link.width for link in links.values()})
    value = f"x{widths[0]}" if len(widths) == 1 else f"x{widths[0]} to x{widths[-1]}"
    now, most = ({getattr(link, name) for link in links.values()} for name in ("generation", "most_generation"))
    if len(now) == len(most) == 1 and None not in now | most:
        (generation,), (highest,) = now, most
        value += f", generation {generation}"
        if generation != highest:
            return note(f"{value} of {highest}", "links of idle GPUs run slowly to save power, and others always",
                        "look again while a GPU works: nvidia-smi -q -d PERFORMANCE")  # fmt: skip
    return ok(value)


def _by_sysfs(system: System, bus: str | None) -> PcieLink | None:
    folder = f"{_LINKS}/{bus_id(bus or '')}"
    words = [system.text(f"{folder}/{name}_link_width") or "" for name in ("current", "max")]
    if not all(word.isdigit() and 0 < int(word) <= 32 for word in words):  # a virtual machine says 0 or 255
        return None
    return PcieLink(width=int(words[0]), most=int(words[1]))


def _place(bus: str, ids: dict[str, int]) -> str:
    """Return which GPU that is: the log leaves the bus id's function out."""
    index = ids.get(bus_id(bus if "." in bus else f"{bus}.0"))
    return bus if index is None else f"GPU {index}"
