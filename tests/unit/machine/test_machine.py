"""`commbench topo` on recorded machines: the right tables, and notes instead of tracebacks for all that is odd."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commbench.cli import _main
from commbench.commands import topo as command
from commbench.errors import UsageError
from commbench.machine import describe, driver, paths, record, sysfs
from commbench.machine.driver import DriverReport, ReportedGpu
from commbench.machine.files import Files, natural
from commbench.machine.machine import Machine, NumaNode, NvLinks, PciDevice
from commbench.machine.paths import Kind, nearest_nics
from tests.conftest import REPOSITORY, here, only_run
from tests.support import machines

SWITCH = ("pci0000:15", "0000:15:01.0", "0000:16:00.0")  # host bridge, root port, upper side of a switch
NODE = "sys/devices/system/node"


@pytest.fixture(params=machines.NAMES)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return machines.unpack(request.param, tmp_path / request.param)


def read(name: str, folder: Path) -> Machine:
    return sysfs.read(machines.unpack(name, folder / name))


def matrix(machine: Machine) -> dict[str, str]:
    """A row of the table for each device, in words."""
    return {name: " ".join(row.values()) for name, row in describe.dictionary(machine)["paths"].items()}


def test_azure_ndv4(tmp_path: Path) -> None:
    machine = read("ndv4", tmp_path)
    assert [gpu.numa_node for gpu in machine.gpus] == [1, 1, 0, 0, 3, 3, 2, 2]
    assert [nic.name for nic in machine.nics] == [*(f"mlx5_{at}" for at in range(8)), "eth0"]
    expected = {}
    for kind in ("GPU", "mlx5_"):
        for at in range(8):
            on_bus = ["NODE" if other // 2 == at // 2 else "SYS" for other in range(8)]
            itself = ["X" if other == at else way for other, way in enumerate(on_bus)]
            links = ["X" if other == at else "NV12" for other in range(8)]
            first, second = (links, on_bus) if kind == "GPU" else (on_bus, itself)
            expected[f"{kind}{at}"] = " ".join([*first, *second, "?"])
    expected["eth0"] = " ".join([*"?" * 16, "X"])
    assert matrix(machine) == expected
    for at, gpu in enumerate(machine.gpus):
        assert [nic.name for nic in nearest_nics(machine, gpu)] == [f"mlx5_{at // 2 * 2}", f"mlx5_{at // 2 * 2 + 1}"]
    card = machine.nics[0]
    assert (card.model, card.link, card.speed, card.netdevs) == ("ConnectX-6 VF", "InfiniBand", "200 Gbit/s", ("ib0",))
    assert card.pci_path == ("pci0101:00", "0101:00:00.0") and card.cpus == tuple(range(24, 48))
    ethernet = machine.nics[8]
    assert (ethernet.pci_bus_id, ethernet.speed, machine.near(ethernet)) == ("", "50 Gbit/s", None)
    assert machine.nodes[3] == NumaNode(
        index=3, cpus=tuple(range(72, 96)), memory_bytes=221 << 30, distances=(32, 32, 12, 10)
    )
    assert machine.notes == ()


def test_dgx_h100(tmp_path: Path) -> None:
    machine = read("dgx", tmp_path)
    others = ["mlx5_8", "mlx5_9", "eno3"]
    names = [*(f"mlx5_{at}" for at in range(8)), *others]
    assert [nic.name for nic in machine.nics] == names
    expected = {}
    for kind in ("GPU", "mlx5_"):
        for at in range(8):
            on_bus = ["NODE" if other // 4 == at // 4 else "SYS" for other in range(8)]
            across = ["PIX" if other == at else way for other, way in enumerate(on_bus)]
            itself = ["X" if other == at else way for other, way in enumerate(on_bus)]
            links = ["X" if other == at else "NV18" for other in range(8)]
            first, second = (links, across) if kind == "GPU" else (across, itself)
            expected[f"{kind}{at}"] = " ".join([*first, *second, *(3 * [on_bus[0]])])
    far = ["NODE"] * 4 + ["SYS"] * 4
    for name, ways in zip(others, ("X PIX NODE", "PIX X NODE", "NODE NODE X"), strict=True):
        expected[name] = " ".join([*far, *far, ways])
    assert matrix(machine) == expected
    for at, gpu in enumerate(machine.gpus):
        assert [nic.name for nic in nearest_nics(machine, gpu)] == [f"mlx5_{at}"]
    assert {gpu.model for gpu in machine.gpus} == {"NVIDIA H100 80GB HBM3"}
    storage = {nic.name: (nic.link, nic.speed, nic.netdevs) for nic in machine.nics if nic.name in others}
    assert storage == {
        "mlx5_8": ("RoCE", "200 Gbit/s", ("ens6f0np0",)),
        "mlx5_9": ("RoCE", "down", ("ens6f1np1",)),
        "eno3": ("Ethernet", "10 Gbit/s", ("eno3",)),
    }


def test_two_h200_as_nvidia_smi_and_lscpu_said(tmp_path: Path) -> None:
    """What was recorded there, beside what the two programs printed on the same machine."""
    machine = read("h200x2", tmp_path)
    smi, lscpu = (machines.FOLDER / "h200x2.txt").read_text().split("$ lscpu")
    rows = [line.split() for line in smi.splitlines() if line.startswith("GPU")]
    found = describe.dictionary(machine)
    assert [row[0] for row in rows] == [gpu.name for gpu in machine.gpus] == ["GPU0", "GPU1"]
    for gpu, (name, *ways, cpus, numa, _) in zip(found["gpus"], rows, strict=True):
        assert [found["paths"][name][other] for other, *_ in rows] == ways
        assert (gpu["cpus"], gpu["numa_node"]) == (cpus, int(numa))
    report = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lscpu.splitlines())}
    assert found["cpus"] == report["On-line CPU(s) list"] == report["NUMA node0 CPU(s)"]
    assert len(machine.nodes) == int(report["NUMA node(s)"]) and len(machine.cpus) == int(report["CPU(s)"])


PC = """\
        GPU0  enp5s0  CPUs  NUMA  nearest NIC
GPU0    X     PHB     0-15  0     enp5s0
enp5s0  PHB   X       0-15  0

Device  PCI           Link                 Interfaces  Model
GPU0    0000:01:00.0  -                    -           NVIDIA 2684
enp5s0  0000:05:00.0  Ethernet 2.5 Gbit/s  enp5s0      Intel 125c

16 CPUs, 1 NUMA node; the last columns are distances to each node
NUMA  CPUs  Memory  0
0     0-15  62 GiB  10

PHB   PCIe, through a host bridge of the CPU
"""


def test_a_pc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = machines.unpack("pc", tmp_path / "pc")
    assert {device.numa_node for device in (*sysfs.read(root).gpus, *sysfs.read(root).nics)} == {None}
    assert _main(["topo", "--root", str(root)]) == 0
    assert capsys.readouterr() == (PC, "")


def test_test_data_is_what_its_script_makes(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "made", "__file__": str(REPOSITORY / "tests/data/machines/make.py")}
    exec(compile((machines.FOLDER / "make.py").read_text(), "make.py", "exec"), names)  # noqa: S102 - our own script
    for name in machines.NAMES:
        assert names[name]() == machines.tree(name)


def machine_of(*devices: tuple[str, tuple[str, ...], int | None], nodes: int = 2) -> Machine:
    made = [PciDevice(kind="gpu", name=name, pci_path=path, numa_node=node) for name, path, node in devices]
    return Machine(
        cpus=tuple(range(nodes)),
        nodes=tuple(NumaNode(index=at, cpus=(at,)) for at in range(nodes)),
        gpus=tuple(made),
        nvlinks=(NvLinks(first="a", second="linked", count=4),),
    )


@pytest.mark.parametrize(
    ("other", "node", "expected"),
    [
        ((*SWITCH, "0000:17:01.0", "0000:19:00.0"), 0, Kind.PIX),  # another port of the same switch
        ((*SWITCH, "0000:17:00.0", "0000:18:00.1"), 0, Kind.PIX),  # another function of the same card
        ((*SWITCH, "0000:17:01.0", "0000:1a:00.0", "0000:1b:00.0", "0000:1c:00.0"), 0, Kind.PXB),  # a switch behind it
        (("pci0000:15", "0000:15:02.0", "0000:20:00.0"), 0, Kind.PHB),
        (("pci0000:40", "0000:40:01.0", "0000:41:00.0"), 0, Kind.NODE),
        (("pci0000:40", "0000:40:01.0", "0000:41:00.0"), 1, Kind.SYS),
        (("pci0000:40", "0000:40:01.0", "0000:41:00.0"), None, Kind.UNKNOWN),
        ((), 0, Kind.NODE),
        ((), None, Kind.UNKNOWN),
    ],
)
def test_kinds_of_paths(other: tuple[str, ...], node: int | None, expected: Kind) -> None:
    here = (*SWITCH, "0000:17:00.0", "0000:18:00.0")
    machine = machine_of(("a", here, 0), ("b", other, node), ("linked", other, node))
    a, b, linked = machine.gpus
    assert paths.kind(machine, a, b) == paths.kind(machine, b, a) == expected
    assert paths.label(machine, a, linked) == paths.label(machine, linked, a) == "NV4"
    assert paths.kind(machine, linked, a) is Kind.NVLINK and paths.pcie(machine, a, linked) == expected
    assert paths.label(machine, a, a) == "X"
    assert expected in paths.MEANING


def nics_of(*cards: tuple[str, str, str, int]) -> Machine:
    gpu = machine_of(("GPU0", ("pci0000:15", "0000:18:00.0"), 0))
    nics = tuple(
        PciDevice(kind="nic", name=name, link=link, speed=speed, numa_node=node) for name, link, speed, node in cards
    )
    return Machine(cpus=gpu.cpus, nodes=gpu.nodes, gpus=gpu.gpus, nics=nics)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([("mlx5_0", "InfiniBand", "", 1), ("eth0", "Ethernet", "", 0)], ["mlx5_0"]),
        ([("mlx5_0", "RoCE", "down", 0), ("mlx5_1", "RoCE", "", 1)], ["mlx5_1"]),
        ([("mlx5_0", "InfiniBand", "down", 0), ("eth0", "Ethernet", "", 1)], ["eth0"]),
        ([("mlx5_0", "InfiniBand", "down", 0)], ["mlx5_0"]),
        ([("eth0", "Ethernet", "", 0), ("eth1", "Ethernet", "", 1), ("eth2", "Ethernet", "", 0)], ["eth0", "eth2"]),
        ([], []),
    ],
)
def test_the_nearest_card_is_one_that_ranks_would_use(cards: list[Any], expected: list[str]) -> None:
    machine = nics_of(*cards)
    assert [nic.name for nic in nearest_nics(machine, machine.gpus[0])] == expected


def test_what_is_recorded_reads_the_same(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    first, second = tmp_path / "first", tmp_path / "second"
    assert _main(["topo", "--root", str(recorded), "--format", "json", "--record", str(first)]) == 0
    before = capsys.readouterr()
    assert "recorded: " in before.err and "small files" in before.err
    assert _main(["topo", "--root", str(first), "--format", "json", "--record", str(second)]) == 0
    assert capsys.readouterr().out == before.out
    assert sysfs.read(first) == sysfs.read(second) == sysfs.read(recorded)
    files = [{path.relative_to(of): path.read_text() for path in of.rglob("*") if path.is_file()}
             for of in (first, second)]  # fmt: skip
    assert files[0] == files[1]


def test_recording_follows_real_links_and_leaves_out_what_is_not_read(tmp_path: Path) -> None:
    root = machines.unpack("pc", tmp_path / "pc")
    for link in (root / "sys/class/net/enp5s0", root / "sys/bus/pci/devices/0000:01:00.0"):
        target = link.read_text().strip()
        link.unlink()
        link.symlink_to(target)
    bridge = root / "sys/devices/pci0000:00/0000:00:1f.0"
    bridge.mkdir()
    (bridge / "class").write_text("0x060100\n")
    (root / "sys/bus/pci/devices/0000:00:1f.0").symlink_to("../../../devices/pci0000:00/0000:00:1f.0")
    (root / "sys/class/net/veth-of-ada").symlink_to("../../devices/virtual/net/veth-of-ada")
    meminfo = root / NODE / "node0/meminfo"
    meminfo.write_text(meminfo.read_text() + "Node 0 MemFree: 5 kB\n")
    machine, count = record.record(root, tmp_path / "out")
    assert machine == read("pc", tmp_path / "whole") == sysfs.read(tmp_path / "out")
    kept = [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()]
    of_no_use = {path for path in machines.tree("pc") if path.endswith("/operstate")}  # the speed says that it is up
    assert {str(path.relative_to(tmp_path / "out")) for path in kept} == machines.tree("pc").keys() - of_no_use
    assert count == len(kept) and not any(path.is_symlink() for path in kept)
    assert "MemFree" not in (tmp_path / "out" / NODE / "node0/meminfo").read_text()


def test_this_machine_is_recorded_too(tmp_path: Path) -> None:
    machine, _ = record.record(Path("/"), tmp_path / "here")
    assert machine.cpus and machine.nodes
    again = sysfs.read(tmp_path / "here")
    assert describe.dictionary(again) | {"notes": []} == describe.dictionary(machine) | {"notes": []}


GARBAGE = ["", "\x00\xff\n", "0-99999999999", "../../..", "[1]", "9" * 5000]


@pytest.mark.parametrize("name", machines.NAMES)
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_noted_and_never_a_traceback(name: str, garbage: str, tmp_path: Path) -> None:
    """One file of each kind in turn, and then all but the list of CPUs."""
    tree = machines.tree(name) | {"sys/devices/system/cpu/online": "0-7"}
    root = machines.unpack(tree, tmp_path)
    kinds = {path.rpartition("/")[2].rstrip("0123456789"): path for path in sorted(tree)}
    del kinds["online"]
    for path in (*kinds.values(), None):
        broken = (
            {path: garbage} if path else dict.fromkeys(tree, garbage) | {"sys/devices/system/cpu/online": "0-7"}
        )  # fmt: skip
        machine = sysfs.read(machines.unpack(broken, root))
        assert machine.cpus == tuple(range(8)) and machine.nodes
        assert describe.table(machine) and json.dumps(describe.dictionary(machine), allow_nan=False)
        for gpu in machine.gpus:
            nearest_nics(machine, gpu)
        machines.unpack({path: tree[path]} if path else tree, root)


@pytest.mark.parametrize("name", machines.NAMES)
def test_missing_folders_are_noted(name: str, tmp_path: Path) -> None:
    tree = machines.tree(name)
    whole = read(name, tmp_path)

    def without(prefix: str) -> Machine:
        left = {path: text for path, text in tree.items() if not path.startswith(prefix)}
        return sysfs.read(machines.unpack(left, tmp_path / f"without {prefix.replace('/', '-')}"))

    machine = without(NODE)
    assert [node.cpus for node in machine.nodes] == [whole.cpus]
    assert "/sys/devices/system/node tells of no NUMA nodes: taken for one that has all CPUs" in machine.notes
    assert (machine.near(machine.nics[0]) or whole).cpus == whole.cpus
    assert "\nNotes\n  /sys" in describe.table(machine)
    machine = without("sys/devices/system/cpu")
    assert machine.cpus == whole.cpus and "/sys/devices/system/cpu/online is missing" in machine.notes[0]
    assert without("sys/class").nics == ()
    assert without("gpus.json").nvlinks == ()
    # As in a container: the driver shows GPUs, and the bus is hidden.
    hidden = without("sys/bus")
    assert [gpu.model for gpu in hidden.gpus] == [gpu.model for gpu in whole.gpus if "gpus.json" in tree]
    assert hidden.nvlinks == (whole.nvlinks if "gpus.json" in tree else ())


def test_gpus_that_the_driver_does_not_show_do_not_count(tmp_path: Path) -> None:
    """A container with two of eight GPUs: GPU0 is the first that CUDA has."""
    tree = machines.tree("dgx")
    shown = ["0000:52:00.0", "0000:d1:00.0"]
    tree["gpus.json"] = json.dumps({"nvlinks": {shown[1]: {"00000000:52:00.0".upper(): 18}}})
    machine = sysfs.read(machines.unpack(tree, tmp_path))
    assert [(gpu.name, gpu.pci_bus_id) for gpu in machine.gpus] == [("GPU0", shown[0]), ("GPU1", shown[1])]
    assert machine.nvlinks == (NvLinks(first="GPU0", second="GPU1", count=18),)
    assert machine.notes == ("6 GPUs are on the PCI bus that the driver does not show here: left out",)


def test_gpus_of_amd_are_there_without_a_driver_to_ask(tmp_path: Path) -> None:
    tree = machines.tree("pc")
    gpu = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    tree |= {f"{gpu}/class": "0x120000", f"{gpu}/vendor": "0x1002", f"{gpu}/device": "0x74a1"}
    (found,) = sysfs.read(machines.unpack(tree, tmp_path)).gpus
    assert (found.model, found.pci_path[0]) == ("AMD 74a1", "pci0000:00")


def test_virtual_functions_and_odd_cards(tmp_path: Path) -> None:
    tree = machines.tree("dgx")
    folder = "sys/devices/pci0000:26/0000:26:01.0/0000:29:00.2"
    ports = folder.replace("00.2", "00.7")
    tree |= {
        f"{folder}/physfn": "../0000:29:00.0", "sys/class/net/vf0": f"../../../{folder}/net/vf0",
        "sys/class/infiniband/rxe0": "../../devices/virtual/infiniband/rxe0",
        "sys/class/net/bond0": "../../devices/virtual/net/bond0", "sys/class/net/bonding_masters": "bond0",
        # Two ports of one function are one card, as fast as its faster port; a card of no PCI bus is one as well.
        "sys/class/net/eno10": f"../../../{ports}/net/eno10", "sys/class/net/eno9": f"../../../{ports}/net/eno9",
        f"{ports}/net/eno9/speed": "100", f"{ports}/net/eno10/speed": "10", f"{ports}/numa_node": "7",
        "sys/class/net/soc0": "../../../sys/devices/platform/fe300000.ethernet/net/soc0",
        "sys/class/infiniband/efa_0": "../../../sys/devices/pci0000:00/0000:00:09.0/infiniband/efa_0",
    }  # fmt: skip
    machine = sysfs.read(machines.unpack(tree, tmp_path))
    known = {nic.name for nic in read("dgx", tmp_path / "whole").nics}
    odd = {nic.name: nic for nic in machine.nics if nic.name not in known}
    assert {name: (nic.link, nic.speed, nic.netdevs) for name, nic in odd.items()} == {
        "efa_0": ("RDMA", "", ()),
        "eno9": ("Ethernet", "100 Mbit/s", ("eno9", "eno10")),
        "soc0": ("Ethernet", "", ("soc0",)),
    }
    assert odd["soc0"].pci_path == () and odd["eno9"].numa_node is None
    assert "1 virtual functions of the network cards are left out" in machine.notes
    assert any("is near NUMA node 7, which this machine does not have" in note for note in machine.notes)


def test_links_never_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/up").write_text("../../etc")
    (tmp_path / "root/absolute").symlink_to("/etc")
    files = Files(tmp_path / "root")
    assert files.target("up") is files.target("absolute") is files.target("none") is files.target("a\0b") is None
    assert files.text("a\0b") is None and files.names("a\0b") == []
    assert sorted(["mlx5_10", "mlx5_2", "eth0"], key=natural) == ["eth0", "mlx5_2", "mlx5_10"]


BAD = {
    "--root {}/none": ("none' is not there", "--record"),
    "--root {}/file": ("file: no row GPU0", "commbench topo --record"),
    "--root {}/empty": ("empty': neither sys/devices/system/cpu/online", "--record"),
    "--root {}/pc --plot m.pdf": ("unknown kind of picture '.pdf'", ".png or .svg"),
    "--root {}/pc --plot {}/none/m.png": ("cannot write", "folder that is there"),
    "--root {}/pc --record {}/pc": ("is there and not empty", "--record"),
    "--root {}/pc --record {}/file": ("is there and not empty", "--record"),
    "--root {}/pc --record {}/file/x": ("cannot write", "folder of yours"),
}


@pytest.mark.parametrize("words", list(BAD))
def test_errors_name_the_path_and_say_what_to_do(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    machines.unpack("pc", tmp_path / "pc")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert _main(["topo", *words.replace("{}", str(tmp_path)).split()]) == 2
    message, hint = BAD[words]
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and hint in said


def test_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = machines.unpack("dgx", tmp_path / "dgx")
    assert command.run("json", root) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert set(found) == {"format_version", "cpus", "numa_nodes", "gpus", "nics", "paths", "nearest_nics", "notes"}
    assert found["cpus"] == "0-223" and found["numa_nodes"][1]["cpus"] == "56-111,168-223"
    assert found["gpus"][0] == {
        "kind": "gpu", "name": "GPU0", "model": "NVIDIA H100 80GB HBM3", "pci_bus_id": "0000:1b:00.0", "numa_node": 0,
        "pci_path": ["pci0000:15", "0000:15:01.0", "0000:16:00.0", "0000:17:02.0", "0000:1b:00.0"],
        "cpus": "0-55,112-167", "pcie_gbps": None,
    }  # fmt: skip
    assert found["nics"][8]["netdevs"] == ["ens6f0np0"] and found["nearest_nics"]["GPU5"] == ["mlx5_5"]


def test_a_run_keeps_the_machine(tmp_path: Path) -> None:
    words = ("sweep", "quick", "transport=scripted", "launches=1", "iters=3", "-e", "1K", "--no-plots", "-q")
    assert here(*words, cwd=tmp_path).returncode == 0
    kept = json.loads((only_run(tmp_path / "results") / "topology.json").read_text())
    assert kept["layouts"] and kept["machine"] == json.loads(json.dumps(describe.dictionary(sysfs.read())))


def test_pictures(recorded: Path, tmp_path: Path) -> None:
    for suffix in ("png", "svg"):
        path = tmp_path / f"machine.{suffix}"
        assert _main(["topo", "--root", str(recorded), "--plot", str(path)]) == 0
        assert path.stat().st_size > 5000
    svg = path.read_text()
    assert _main(["topo", "--root", str(recorded), "--plot", str(path)]) == 0
    assert "<svg" in svg


def test_words_of_a_picture_stay_in_it_and_apart(recorded: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from commbench.plots.machine import figure

    drawn = figure(sysfs.read(recorded))
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    words = drawn.axes[0].texts
    boxes = [(word.get_text(), word.get_window_extent(canvas.get_renderer())) for word in words if word.get_text()]
    width, height = canvas.get_width_height()
    for at, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        for other, beside in boxes[at + 1 :]:
            assert not box.padded(-1).overlaps(beside.padded(-1)), (text, other)


def test_pairs_of_gpus_with_nvlinks_of_their_own(tmp_path: Path) -> None:
    from commbench.plots.machine import _levels, draw

    links = [NvLinks(first=f"GPU{a}", second=f"GPU{b}", count=c) for a, b, c in ((0, 3, 1), (0, 1, 2), (2, 3, 2))]
    assert _levels(links, ["GPU2", "GPU3", "GPU0", "GPU1"]) == [[links[2], links[1]], [links[0]]]
    gpus = tuple(PciDevice(kind="gpu", name=f"GPU{at}") for at in range(4))
    machine = Machine(cpus=(0,), nodes=machine_of().nodes, gpus=gpus, nvlinks=tuple(links))
    draw(machine, tmp_path / "pairs.svg")
    assert "NV2" in describe.table(machine)


def nvml(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Two GPUs of which the driver says what `functions` say."""

    class NVMLError(Exception):
        pass

    def refuse(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    answers = {
        "Init": lambda: None, "Shutdown": lambda: None, "SystemGetDriverVersion": lambda: "570",
        "DeviceGetCount": lambda: 2,
        "DeviceGetHandleByIndex": lambda index: index, "DeviceGetName": lambda _: "H200",
        "DeviceGetPciInfo": lambda index: SimpleNamespace(busId=f"00000000:{'3A'[index]}B:00.0"),
        "DeviceGetMemoryAffinity": lambda index, *_: [1 << index, 0],
        "DeviceGetNvLinkState": lambda _, link: int(link < 3) if link < 4 else refuse(), **functions,
    }  # fmt: skip

    class Library(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return refuse

    library = Library(
        NVMLError=NVMLError, NVML_NVLINK_MAX_LINKS=6, NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1, NVML_VOLATILE_ECC=0,
        NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON=90,
        **{f"nvml{name}": function for name, function in answers.items()},
    )  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "pynvml", library)


OTHER = {"DeviceGetNvLinkRemotePciInfo": lambda index, link: SimpleNamespace(busId=f"00000000:{'A3'[index]}B:00.0")}
SWITCHED = {
    "DeviceGetNvLinkRemotePciInfo": lambda index, link: SimpleNamespace(busId="00000000:06:00.0"),
    "DeviceGetNvLinkRemoteDeviceType": lambda *_: 2,
}


@pytest.mark.parametrize(
    ("functions", "count"),
    [
        (OTHER, 3),
        (SWITCHED, 3),
        (SWITCHED | {"DeviceGetP2PStatus": lambda *_: 0}, 3),
        (SWITCHED | {"DeviceGetP2PStatus": lambda *_: 2}, 0),
        (SWITCHED | {"DeviceGetNvLinkState": lambda index, link: int(link <= index)}, 1),  # one of the second's is up
        (SWITCHED | {"DeviceGetNvLinkRemoteDeviceType": lambda *_: 0}, 0),  # a GPU that is not shown here
        ({}, 3),  # a virtual machine that hides the switches
        ({"DeviceGetNvLinkState": lambda *_: 0}, 0),
        ({"DeviceGetCount": lambda: 1}, 0),
    ],
)
def test_nvlinks_as_the_driver_tells_of_them(
    functions: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(monkeypatch, **functions)
    assert driver.ask().nvlinks == ({("0000:3b:00.0", "0000:ab:00.0"): count} if count else {})


def test_a_container_with_gpus_and_no_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvml(monkeypatch, **SWITCHED)
    gpus = (
        ReportedGpu(pci_bus_id="0000:3b:00.0", model="H200", numa_node=0),
        ReportedGpu(pci_bus_id="0000:ab:00.0", model="H200", numa_node=1),
    )
    report = DriverReport(gpus=gpus, nvlinks={("0000:3b:00.0", "0000:ab:00.0"): 3})
    assert sysfs.read_driver(Path("/")) == report
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-7\n")
    (tmp_path / driver.FILE).write_text(driver.to_json(report))
    assert driver.recorded(tmp_path) == report
    machine = sysfs.read(tmp_path)
    assert [gpu.name for gpu in machine.gpus] == ["GPU0", "GPU1"]
    assert matrix(machine) == {"GPU0": "X NV3", "GPU1": "NV3 X"}
    assert [machine.near(gpu) for gpu in machine.gpus] == [machine.nodes[0]] * 2, "one node leaves no question"


def test_a_machine_that_says_nothing_still_has_its_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sandbox without /sys: what is here is counted. A recorded machine without CPUs is none."""
    files = Files(tmp_path)
    with pytest.raises(UsageError, match="no machine under"):
        sysfs.assemble(files, DriverReport())
    monkeypatch.setattr(sysfs, "is_here", lambda root: True)
    machine = sysfs.assemble(files, DriverReport())
    assert machine.cpus and machine.nodes[0].cpus == machine.cpus and len(machine.notes) == 2
    assert describe.table(machine).startswith("No GPUs and no network cards\n")
