"""What ran where: the machine, its topology, the ranks as they were found, and the command that made a run."""

from __future__ import annotations

import contextlib
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commbench.errors import CommbenchError
from commbench.machine import cpulist
from commbench.report.page import Block, CommandLine, FactList, PageColumn, PageSection, PageTable, Paragraph
from commbench.run_folder import RunFolder
from commbench.serialise import parse_json
from commbench.units import format_size

_MOST_RANKS = 4096  # in the table of what ran where
_MOST_BYTES = 1 << 24  # of a file that is looked through for hosts
_FACTS = ("host", "kernel", "cpu", "cpus", "memory", "governor", "python", "commit")


def about(of_run: Mapping[str, Any]) -> list[str]:
    """Return machine, date and version of a run, as its run.json has them."""
    version = f"commbench {of_run['commbench_version']}" if of_run.get("commbench_version") else ""
    made = [of_run.get("machine_text", ""), str(of_run.get("started", ""))[:16].replace("T", " "), version]
    partial = f"PARTIAL: {of_run['partial']}" if of_run.get("partial") else ""
    return [str(text) for text in (*made, partial) if text]


def typed(words: Sequence[str]) -> str:
    """Return a command as a shell takes it."""
    return shlex.join(words)


def command(folder: RunFolder) -> CommandLine:
    """Return what made a run."""
    return CommandLine(
        text=typed(list(map(str, folder.read_json("run.json").get("command") or []))), label=folder.run_id
    )


def sections(folder: RunFolder, *, named: bool) -> list[PageSection]:
    """Return what is known of machine and ranks of a run folder. named: titles say which run it is."""
    which = f" ({folder.run_id})" if named else ""
    made = [PageSection(title=f"What ran where{which}", blocks=_ran(folder), folded=named)]
    if blocks := _topology(folder):
        made.append(PageSection(title=f"Topology{which}", blocks=blocks, folded=True))
    return made


def _ran(folder: RunFolder) -> list[Block]:
    of_run = folder.read_json("run.json")
    machine = of_run.get("machine") or {}
    facts = [
        ("run", folder.run_id),
        ("status", str(of_run.get("status", ""))),
        *((name, str(machine[name])) for name in _FACTS if machine.get(name) is not None),
    ]
    packages = machine.get("packages") or {}
    facts.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)))
    variables = _optional(folder, "env.json").get("environment") or {}
    facts += [(str(name), str(value)) for name, value in variables.items()]
    blocks: list[Block] = [FactList(items=[(name, text) for name, text in facts if text])]
    if ranks := _ranks(folder):
        blocks.append(ranks)
    return blocks


def _ranks(folder: RunFolder) -> PageTable | None:
    """Return the ranks of the first launch, as the kernel and the libraries described them."""
    newest: dict[int, Mapping[str, Any]] = {}
    launches = sorted({path.parent for path in (folder.path / "logs").glob("*/rank-*.json")})
    for path in sorted(launches[0].glob("rank-*.json"))[:_MOST_RANKS] if launches else []:
        try:
            one = parse_json(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(one, dict) and isinstance(one.get("rank"), int):
            newest[one["rank"]] = one
    if not newest:
        return None
    lines = [newest[rank] for rank in sorted(newest)]
    columns = [
        PageColumn(name="rank", values=[int(one["rank"]) for one in lines]),
        PageColumn(name="host", values=[str(one.get("host", "")) for one in lines]),
        PageColumn(name="CPUs", values=[_cpus(one.get("affinity")) for one in lines]),
        PageColumn(name="memory", values=[_memory(one) for one in lines]),
        PageColumn(name="device", values=[_device(one.get("device")) for one in lines]),
        PageColumn(name="libraries", values=[_joined(one.get("versions")) for one in lines]),
    ]
    return PageTable(columns=[one for one in columns if any(value != "" for value in one.values)], name="ranks")


def _cpus(affinity: Any) -> str:
    return cpulist.text(affinity) if isinstance(affinity, list) and all(isinstance(c, int) for c in affinity) else ""


def _memory(one: Mapping[str, Any]) -> str:
    found = (one.get("binding") or {}).get("found") or {} if isinstance(one.get("binding"), dict) else {}
    return f"nodes {found['memory_nodes']}" if found.get("memory_nodes") else ""


def _device(device: Any) -> str:
    if not isinstance(device, dict):
        return ""
    return " ".join(str(device[name]) for name in ("name", "index", "pci_bus_id") if device.get(name) is not None)


def _joined(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""


def _optional(folder: RunFolder, name: str) -> dict[str, Any]:
    """Return a file that holds no result; {} where it is not there, or damaged."""
    try:
        return folder.read_json(name)
    except CommbenchError:
        return {}


def _topology(folder: RunFolder) -> list[Block]:
    found = _optional(folder, "topology.json")
    return topology(found.get("machine") or {})


def topology(machine: Mapping[str, Any]) -> list[Block]:
    """Return a machine as `commbench topo --format json` has it: devices, NUMA nodes, and what is near what."""
    blocks: list[Block] = []
    devices = [*_dicts(machine.get("gpus")), *_dicts(machine.get("nics"))]
    if devices:
        blocks.append(
            PageTable(
                columns=[
                    PageColumn(name="device", values=[str(one.get("name", "")) for one in devices]),
                    PageColumn(name="model", values=[str(one.get("model", "")) for one in devices]),
                    PageColumn(name="PCI", values=[str(one.get("pci_bus_id", "")) for one in devices]),
                    PageColumn(name="NUMA node", values=[_or_none(one.get("numa_node")) for one in devices]),
                    PageColumn(name="CPUs", values=[str(one.get("cpus", "")) for one in devices]),
                    PageColumn(
                        name="link", values=[f"{one.get('link', '')} {one.get('speed', '')}".strip() for one in devices]
                    ),
                ],
                name="devices",
            )
        )
    if nodes := _dicts(machine.get("numa_nodes")):
        blocks.append(
            PageTable(
                columns=[
                    PageColumn(name="NUMA node", values=[_or_none(one.get("index")) for one in nodes]),
                    PageColumn(name="CPUs", values=[str(one.get("cpus", "")) for one in nodes]),
                    PageColumn(name="memory", values=[format_size(int(one.get("memory_bytes") or 0)) for one in nodes]),
                    PageColumn(
                        name="distances", values=[" ".join(map(str, one.get("distances") or [])) for one in nodes]
                    ),
                ],
                name="NUMA nodes",
            )
        )
    paths = machine.get("paths")
    if isinstance(paths, dict) and len(paths) > 1 and all(isinstance(one, dict) for one in paths.values()):
        names = list(paths)
        blocks.append(
            PageTable(
                columns=[
                    PageColumn(name="path", values=names),
                    *(PageColumn(name=str(to), values=[str(paths[one].get(to, "")) for one in names]) for to in names),
                ],
                name="devices",
            )
        )
        blocks.append(
            Paragraph(
                text="Paths as nvidia-smi topo -m names them: NV# NVLink, PIX to PHB through PCIe "
                "switches to the host bridge, NODE inside a NUMA node, SYS between NUMA nodes.",
                small=True,
            )
        )
    blocks += [Paragraph(text=str(text), small=True) for text in machine.get("notes") or []]
    return blocks


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _or_none(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def hosts(paths: Sequence[Path]) -> set[str]:
    """Return the names of hosts that the files of runs give."""
    found: set[str] = {platform.node()}
    for path in paths:
        files = [
            path,
            path / "run.json",
            path / "check.json",
            path / "ab.json",
            path / "trace.json",
            path / "tuning.json",
        ]
        if path.is_dir():
            files += [*path.glob("logs/*/*.json"), *path.glob("*/run.json"), *path.glob("*/logs/*/*.json")]
        for file in files:
            with contextlib.suppress(OSError, ValueError, RecursionError):
                if file.is_file() and file.stat().st_size < _MOST_BYTES:
                    _named(parse_json(file.read_bytes()), found)
    return found


def _named(value: Any, found: set[str]) -> None:
    """Add what stands under `host`, `hosts` or `hostname`, wherever it is."""
    if isinstance(value, list):
        for one in value:
            _named(one, found)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in ("host", "hostname") and isinstance(one, str):
                found.add(one)
            elif key == "hosts" and isinstance(one, list):
                found.update(text for text in one if isinstance(text, str))
            _named(one, found)
