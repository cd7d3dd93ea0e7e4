"""A machine from NCCL's topology XML and from the text of nvidia-smi: the same words, or one error."""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.machine import describe, foreign, paths
from commbench.machine.machine import Machine

GPU = '<pci busid="{0}" class="0x030200"><gpu dev="0" sm="90" rank="0" gdr="1">{1}</gpu></pci>'
LINK = '<nvlink target="0000:ff:00.0" count="{0}" tclass="0x068000"/>'
NIC = '<pci busid="0000:1c:00.0" class="0x020700"><nic><net name="mlx5_0" dev="0" speed="400000"/></nic></pci>'
XML = f"""<system version="1">
  <cpu numaid="1" affinity="ffff0000" arch="x86_64"><pci busid="0000:9a:00.0" class="0x060400">
    {GPU.format("0000:9b:00.0", LINK.format(18))}</pci></cpu>
  <cpu numaid="0" affinity="0000ffff" arch="x86_64">
    <pci busid="0000:1a:00.0" class="0x060400">{GPU.format("0000:1b:00.0", LINK.format(16))}{NIC}</pci>
    {GPU.format("0000:2b:00.0", "")}
  </cpu>
</system>
"""
SMI = """\
\x1b[4m\tGPU0\tGPU1\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\tSYS\t0-79\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tNODE\t80-159\t1\t\tN/A
NIC0\tPIX\tSYS\t X \tSYS
NIC1\tSYS\tNODE\tSYS\t X

Legend:
  X    = Self
NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""


def read(tmp_path: Path, text: str) -> Machine:
    path = tmp_path / "machine"
    path.write_text(text)
    return foreign.read(path)


def matrix(machine: Machine) -> dict[str, str]:
    return {name: " ".join(row.values()) for name, row in describe.dictionary(machine)["paths"].items()}


def test_nccls_topology(tmp_path: Path) -> None:
    machine = read(tmp_path, XML)
    assert [(gpu.pci_bus_id, gpu.numa_node) for gpu in machine.gpus] == [
        ("0000:1b:00.0", 0), ("0000:2b:00.0", 0), ("0000:9b:00.0", 1),
    ]  # fmt: skip
    assert [node.cpus for node in machine.nodes] == [tuple(range(16)), tuple(range(16, 32))]
    assert matrix(machine) == {
        "GPU0": "X PHB NV16 PIX", "GPU1": "PHB X SYS PHB", "GPU2": "NV16 SYS X SYS", "mlx5_0": "PIX PHB SYS X",
    }  # fmt: skip
    assert machine.nics[0].speed == "400 Gbit/s"
    assert [nic.name for nic in paths.nearest_nics(machine, machine.gpus[0])] == ["mlx5_0"]


@pytest.mark.parametrize("blanks", ["\t", "   "])
def test_nvidia_smi(tmp_path: Path, blanks: str) -> None:
    machine = read(tmp_path, SMI.replace("\t", blanks))
    assert matrix(machine) == {
        "GPU0": "X NV18 PIX SYS", "GPU1": "NV18 X SYS NODE", "mlx5_0": "PIX SYS X SYS", "mlx5_1": "SYS NODE SYS X",
    }  # fmt: skip
    assert [device.numa_node for device in (*machine.gpus, *machine.nics)] == [0, 1, 0, 1]
    assert machine.nodes[1].cpus == tuple(range(80, 160))
    assert [paths.nearest_nics(machine, gpu)[0].name for gpu in machine.gpus] == ["mlx5_0", "mlx5_1"]
    assert "mlx5_1" in describe.table(machine)


WRONG = [
    ("", "no row GPU0"),
    ("<system", "unclosed token"),
    ("<graphs/>", "<graphs> where NCCL writes <system>"),
    ("<system/>", "there is no <cpu> in it"),
    ('<!DOCTYPE x [<!ENTITY a "b">]><system/>', "no document type"),
    (XML.replace('numaid="1"', ""), "'numaid' is missing"),
    (XML.replace('count="18"', 'count="many"'), "invalid literal"),
    (SMI.replace("GPU1\tNV18", "GPU1\tfast"), "'fast' in the row of GPU1 is not a path"),
    (SMI.replace("NIC1\tSYS\tNODE\tSYS\t X", "NIC1\tSYS"), "the row of NIC1 is missing or cut short"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_neither_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, text)
    assert said in str(raised.value) and "NCCL_TOPO_DUMP_FILE" in raised.value.hint


def test_links_of_amds_gpus(tmp_path: Path) -> None:
    gpu = '<pci busid="0000:{0}:00.0"><gpu dev="0" sm="90"><xgmi target="0000:{1}:00.0" count="2"/></gpu></pci>'
    inside = gpu.format("1b", "2b") + gpu.format("2b", "1b")
    machine = read(tmp_path, f'<system version="2"><cpu numaid="0" affinity="f">{inside}</cpu></system>')
    assert matrix(machine) == {"GPU0": "X NV2", "GPU1": "NV2 X"}
    assert any("NV is xGMI here" in note for note in machine.notes)
