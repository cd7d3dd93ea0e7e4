"""`commbench doctor` on recorded machines: each check is seen to be content and to complain, and none ever raises."""

from __future__ import annotations

import errno
import json
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from commbench.commands import doctor as command
from commbench.doctor import CHECKS, CheckStatus, Finding, examine, finding
from commbench.doctor.load import look
from commbench.doctor.system import System, Torch
from commbench.errors import EnvironmentProblem
from commbench.launch.mpi_library import MpiLibrary
from commbench.layout import LinkClass
from commbench.links import LinkRate
from commbench.machine.gpu_health import GpuHealth, NvlinkErrors, PcieLink, RemappedRows
from commbench.machine.gpus import Gpu, Gpus

GI = 1 << 30
CPU = "/sys/devices/system/cpu"
MLX = "/sys/class/infiniband/mlx5_0/ports/1"


@dataclass
class Recorded(System):
    """A machine as it was written down. What is not in it is not there."""

    files: dict[str, str] = field(default_factory=dict)
    files_later: dict[str, str] = field(default_factory=dict)  # as they are after a wait
    environ: Mapping[str, str] = field(default_factory=dict)
    cpus: set[int] = field(default_factory=set)
    programs: dict[str, str] = field(default_factory=dict)  # name -> path
    says: dict[str, str] = field(default_factory=dict)  # path -> what it prints
    packages: dict[str, str] = field(default_factory=dict)
    entries: list[str] = field(default_factory=lambda: ["commbench_autoload:activate"])
    requires: list[str] = field(default_factory=list)
    at: dict[str, list[str]] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    rates: dict[str, dict[LinkClass, LinkRate]] = field(default_factory=dict)
    spaces: dict[str, tuple[int, int]] = field(default_factory=dict)
    limits: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)
    lock_error: OSError | None = None
    log: list[str] | None = field(default_factory=lambda: ["6,1,2,-;usb 1-1: new device"])  # the kernel's; None: denied
    mpi: MpiLibrary | Exception = field(default_factory=lambda: ModuleNotFoundError("no mpi_library"))
    torch: Torch = field(default_factory=lambda: Torch(error="No module named 'torch'"))
    gpus: Gpus = field(default_factory=lambda: Gpus(reason="no driver"))
    folder: str = "/home/ada/runs"
    temporary_folder: str = "/tmp"
    home: str = "/home/ada"
    python: str = "/opt/venv/bin/python"
    python_version: str = "3.12.3"
    host: str = "node7"
    pid: int = 100

    def read(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.files[path].strip()

    def addresses(self) -> dict[str, list[str]]:
        return self.at

    def names(self, path: str) -> list[str]:
        below = (name.removeprefix(path + "/") for name in self.files if name.startswith(path + "/"))
        return sorted({name.split("/")[0] for name in below})

    def exists(self, path: str) -> bool:
        return path in self.files or bool(self.names(path))

    def real_path(self, path: str) -> str:
        return path

    def space(self, path: str) -> tuple[int, int]:
        if path not in self.spaces:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return self.spaces[path]

    def try_lock(self, folder: str) -> None:
        if self.lock_error:
            raise self.lock_error

    def kernel_log(self) -> list[str]:
        if self.log is None:
            raise PermissionError(errno.EPERM, "Operation not permitted", "/dev/kmsg")
        return self.log

    def allowed_cpus(self) -> set[int]:
        return self.cpus

    def limit(self, what: int) -> tuple[int | None, int | None]:
        if what not in self.limits:
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.limits[what]

    def wait(self, seconds: float) -> None:
        self.files = {**self.files, **self.files_later}

    def which(self, program: str) -> str | None:
        return self.programs.get(program)

    def run(self, *words: str) -> str:
        if words[0] not in self.says:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", words[0])
        return self.says[words[0]]

    def version(self, package: str) -> str | None:
        return self.packages.get(package)

    def entry_points(self, group: str) -> list[str]:
        return self.entries

    def requirements(self) -> list[str]:
        return self.requires

    def transports(self) -> dict[str, str]:
        return self.lacks

    def link_rates(self, transport: str) -> dict[LinkClass, LinkRate]:
        return self.rates.get(transport, {})

    @property
    def mpi_library(self) -> MpiLibrary:  # type: ignore[override]
        if isinstance(self.mpi, Exception):
            raise self.mpi
        return self.mpi


GPU = Gpu(
    name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GI, mig=False, persistence=True, ecc=True, ecc_errors=0,
    busy_percent=0, clock_mhz=1980, max_clock_mhz=1980, slowed_by=0x1, power_limit_w=700.0, default_power_limit_w=700.0,
    nvlinks=18, health=GpuHealth(
        remapped=RemappedRows(corrected=1, uncorrected=0, pending=False, failed=False), nvlinks_down=0,
        nvlink_errors=NvlinkErrors(), pcie=PcieLink(width=16, most=16, generation=5, most_generation=5),
    ),
)  # fmt: skip
MPICH = MpiLibrary(
    family="mpich",
    version="MPICH Version:      5.0.2",
    path="/opt/venv/lib/libmpi.so.12",
    mpiexec="/opt/venv/bin/mpiexec",
)


MLX_RATES: dict[LinkClass, LinkRate] = {"inter": LinkRate(gbps=50.0, of="node", kind="nominal", source="mlx5_0")}


def node() -> Recorded:
    """A quiet node of a cluster, in a Slurm job: two sockets of two cores, two GPUs, two InfiniBand ports."""
    files = {
        "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu tsc avx2\n",
        "/proc/loadavg": "0.10 0.05 0.01 1/400 4242",
        "/proc/stat": "cpu  1000 0 500 98000 100 0 0 1 0 0\ncpu0 1 2 3",
        "/proc/100/stat": "100 (commbench) R 1 1 1 0 -1 0 0 0 0 0 50 10 0 0",
        "/proc/7/stat": "7 (kworker/0:1 (x)) I 2 0 0 0 -1 0 0 0 0 0 0 900 0 0",
        "/proc/meminfo": f"MemTotal: {256 << 20} kB\nMemAvailable: {240 << 20} kB\nSwapTotal: 0 kB\nSwapFree: 0 kB",
        "/proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0",
        "/proc/self/mounts": "/dev/sda1 / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nshm /dev/shm tmpfs rw 0 0",
        "/proc/sys/kernel/numa_balancing": "0",
        "/proc/driver/nvidia/version": "NVRM version: 550.54",
        "/sys/class/dmi/id/sys_vendor": "Acme",
        "/sys/class/net/lo/operstate": "unknown",
        "/sys/class/net/eth0/operstate": "up",
        "/sys/class/net/eth0/speed": "25000",
        "/sys/class/net/eth0/device/vendor": "0x15b3",
        f"{MLX}/state": "4: ACTIVE",
        f"{MLX}/rate": "400 Gb/sec (4X NDR)",
        f"{MLX}/link_layer": "InfiniBand",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
        f"{CPU}/online": "0-3",
        f"{CPU}/intel_pstate/no_turbo": "1",
        "/sys/devices/system/node/online": "0-1",
        "/sys/devices/system/node/node0/cpulist": "0-1",
        "/sys/devices/system/node/node1/cpulist": "2-3",
        "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        "/sys/module/nvidia_peermem/refcnt": "0",
        "/opt/venv/bin/torchrun": "#!",
    }
    for cpu in range(4):
        files[f"{CPU}/cpu{cpu}/cpufreq/scaling_governor"] = "performance"
        files[f"{CPU}/cpu{cpu}/topology/thread_siblings_list"] = str(cpu)
    return Recorded(
        files=files,
        # 0.3 s on 4 CPUs: 30 ticks each, all but ours idle
        files_later={
            "/proc/stat": "cpu  1020 0 500 98100 100 0 0 1 0 0",
            "/proc/100/stat": "100 (commbench) R 1 1 1 0 -1 0 0 0 0 0 70 10 0 0",
        },
        environ={"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"},
        cpus={0, 1, 2, 3},
        programs={name: f"/opt/venv/bin/{name}" for name in ("mpiexec", "torchrun", "numactl")},
        says={"/opt/venv/bin/mpiexec": "HYDRA build details:\n    Version: 5.0.2", "getent": "10.0.0.7   node7"},
        packages={"torch": "2.8.0", "numpy": "2.1", "mpi4py": "4.1.2", "mpich": "5.0.2"},
        requires=["torch>=2.8", "numpy>=1.26", "mpi4py>=4; extra == 'mpi'", "mpich; extra == 'mpi'",
                  "ruff; extra == 'dev'"],
        at={"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7", "fe80::7"], "ib0": ["10.1.0.7"], "docker0": []},
        lacks={"gloo": "", "mpi": ""},
        rates={"gloo": {"inter": LinkRate(gbps=3.125, of="node", kind="nominal", source="eth0")}, "mpi": MLX_RATES},
        spaces={"/dev/shm": (128 * GI, 127 * GI), "/home/ada/runs": (900 * GI, 400 * GI), "/tmp": (64 * GI, 63 * GI)},
        limits={resource.RLIMIT_MEMLOCK: (None, None), resource.RLIMIT_NOFILE: (65536, 65536)},
        mpi=MPICH,
        torch=Torch(
            version="2.8.0+cu128", accelerator="CUDA 12.8", gpus=2, gloo=True, nccl="2.27.3", torchrun=True, seconds=1.4
        ),
        gpus=Gpus(driver="550.54", gpus=(replace(GPU, pci_bus_id="00000000:0F:00.0"), GPU)),
    )  # fmt: skip


def files(**changes: str | None) -> Callable[[Recorded], None]:
    """Changes the recorded files whose paths end like that (__ is a slash), or takes them away: None."""

    def change(system: Recorded) -> None:
        for end, text in changes.items():
            end = end.replace("__", "/")
            paths = [path for path in system.files if path.endswith(end)]
            assert paths, end
            for path in paths:
                if text is None:
                    del system.files[path]
                else:
                    system.files[path] = text

    return change


def more(**changes: Any) -> Callable[[Recorded], None]:
    """Adds to mappings of the recording; replaces anything else."""

    def change(system: Recorded) -> None:
        for name, value in changes.items():
            old = getattr(system, name)
            setattr(system, name, {**old, **value} if isinstance(old, dict) else value)

    return change


def without(name: str, *keys: str) -> Callable[[Recorded], None]:
    return lambda system: setattr(system, name, {k: v for k, v in getattr(system, name).items() if k not in keys})


def all_of(*changes: Callable[[Recorded], None]) -> Callable[[Recorded], None]:
    def change(system: Recorded) -> None:
        for one in changes:
            one(system)

    return change


def torch(**changes: Any) -> Callable[[Recorded], None]:
    return lambda system: setattr(system, "torch", replace(system.torch, **changes))


def second_gpu(**changes: Any) -> Callable[[Recorded], None]:
    return lambda system: setattr(
        system, "gpus", replace(system.gpus, gpus=(system.gpus.gpus[0], replace(GPU, **changes)))
    )


def sick(**changes: Any) -> Callable[[Recorded], None]:
    """The second GPU's health, in part."""
    return second_gpu(health=replace(GPU.health, **changes))


def remapped(**changes: Any) -> Callable[[Recorded], None]:
    return sick(remapped=replace(GPU.health.remapped, **changes))


def slots(width: str, most: str) -> Callable[[Recorded], None]:
    """A second GPU of whose slot only sysfs tells."""
    folder = "/sys/bus/pci/devices/0000:1b:00.0"
    read = {f"{folder}/current_link_width": width, f"{folder}/max_link_width": most}
    gpu = second_gpu(pci_bus_id="00000000:1B:00.0", health=replace(GPU.health, pcie=None))
    return all_of(more(files=read), gpu)


def no_gpus(reason: str, *, installed: bool = True) -> Callable[[Recorded], None]:
    return lambda system: setattr(system, "gpus", Gpus(reason=reason, installed=installed))


def library(family: str, version: str) -> Callable[[Recorded], None]:
    return more(mpi=replace(MPICH, family=family, version=version, mpiexec="/usr/lib64/right/mpiexec"))


BUSY = {"/proc/stat": "cpu  1080 0 500 98040 100 0 0 1 0 0",
        "/proc/7/stat": "7 (kworker/0:1 (x)) I 2 0 0 0 -1 0 0 0 0 0 0 930 0 0"}  # fmt: skip
# More than one of the CPUs is taken by a process that yields to everybody.
IDLE_CLASS = {"/proc/stat": "cpu  1058 0 500 98042 100 0 0 1 0 0",
              "/proc/7/stat": f"7 (batch) R 2 1 1 0 -1 0 0 0 0 0 37 900 {'0 ' * 25}5 0"}  # fmt: skip
NICER = {**IDLE_CLASS, "/proc/7/stat": "7 (batch) R 2 1 1 0 -1 0 0 0 0 0 37 900 0 0 30 10 1"}
GROUP = "/sys/fs/cgroup/system.slice"
V1 = {"/proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/"}
NOTE, WARN, FAIL, OK = CheckStatus.NOTE, CheckStatus.WARN, CheckStatus.FAIL, CheckStatus.OK

WORLD = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}

XID = "3,1,2,-;NVRM: Xid (PCI:0000:0f:00): {}, pid=42, {}"

# check, what is changed on the good node, the status it then has, and words that must be said
CHANGES: list[tuple[str, Callable[[Recorded], None], CheckStatus, tuple[str, ...]]] = [
    ("dependencies", without("packages", "numpy"), FAIL, ("numpy", "/opt/venv/bin/python -m pip install numpy")),
    ("extras", without("packages", "mpich"), NOTE, ("mpi (lacks mpich)", "'commbench[mpi]'")),
    ("torch", without("packages", "torch"), FAIL, ("not installed", "pip install torch")),
    ("torch", more(torch=Torch(error="ImportError: libgomp.so.1")), FAIL, ("libgomp.so.1", "-c 'import torch'")),
    ("torch", torch(gpus=0), WARN, ("cannot use the GPUs", "driver may be too old")),
    ("torch", torch(gpus=0, accelerator=""), WARN, ("for CPUs only", "CUDA build")),
    ("torch", torch(gloo=False), WARN, ("without gloo",)),
    ("torch", torch(seconds=25.0), NOTE, ("25.0 s", "local disk")),
    ("transports", more(lacks={"mpi": "transport mpi needs mpi4py, which is not installed: pip install mpi4py"}), NOTE,
     ("ready: gloo", "transport mpi needs mpi4py", "pip install mpi4py")),
    ("mpi4py", without("packages", "mpi4py"), NOTE, ("not installed", "mpi4py mpich")),
    ("library", more(mpi=EnvironmentProblem("finds no MPI library", hint="load a module")), FAIL,
     ("no MPI library", "load a module")),
    ("library", library("openmpi", "Open MPI v5.0.11, package: Open MPI"), OK, ("Open MPI v5.0.11, /opt",)),
    ("mpiexec", library("openmpi", "Open MPI v5.0.11"), FAIL,
     ("of MPICH, but mpi4py loads Open MPI", "four worlds of one rank", "/usr/lib64/right/mpiexec")),
    ("mpiexec", library("intel", "Intel(R) MPI Library 2021.18"), WARN,
     ("loads Intel MPI", "/usr/lib64/right/mpiexec")),
    ("mpiexec", more(says={"/opt/venv/bin/mpiexec": "prterun (PRRTE) 3.0\n(Open MPI) 5"}), FAIL, ("of Open MPI, but",)),
    ("mpiexec", more(says={"/opt/venv/bin/mpiexec": "mpiexec 1.0"}), NOTE, ("unknown MPI",)),
    ("mpiexec", without("programs", "mpiexec"), OK, ("/opt/venv/bin/mpiexec (not on PATH",)),
    ("mpiexec", more(programs={"mpiexec": None}, packages={"mpi4py": None}), NOTE, ("not found", "mpich")),
    ("torchrun", more(programs={"torchrun": "/usr/bin/torchrun"}), WARN,
     ("/usr/bin/torchrun", "/opt/venv/bin/torchrun")),
    ("torchrun", torch(torchrun=False), WARN, ("none",)),
    ("torchrun", without("programs", "torchrun"), OK, ("python -m torch.distributed.run",)),
    ("Slurm", more(environ={}), OK, ("in job 7, 2 nodes, 8 tasks, n[1-2]",)),
    ("Slurm", without("environ", "SLURM_JOB_ID"), NOTE, ("no srun, no sbatch",)),
    ("Slurm", all_of(without("environ", "SLURM_JOB_ID"), more(programs={"srun": "/bin/srun"})), NOTE,
     ("srun found; not in a job", "salloc")),
    ("GPUs", second_gpu(name="NVIDIA A100"), NOTE, ("1 x NVIDIA H100", "1 x NVIDIA A100", "slowest")),
    ("GPUs", no_gpus("nvidia-ml-py is not installed", installed=False), NOTE, ("pip install nvidia-ml-py",)),
    ("GPUs", no_gpus("Driver/library version mismatch"), WARN, ("version mismatch", "nvidia-smi")),
    ("GPUs", all_of(no_gpus("no driver"), files(nvidia__version=None)), NOTE, ("none", "NCCL")),
    ("others", second_gpu(processes=(4711,)), WARN, ("GPU 1: process 4711", "CUDA_VISIBLE_DEVICES")),
    ("others", second_gpu(busy_percent=97), WARN, ("GPU 1: 97 % busy",)),
    ("slowed", second_gpu(slowed_by=0x41), WARN, ("GPU 1: temperature (hardware)",)),
    ("clocks", second_gpu(clock_mhz=345), NOTE, ("345 to 1980 MHz now", "-lgc 1980")),
    ("power limit", second_gpu(power_limit_w=400.0), WARN, ("GPU 1: 400 of 700 W",)),
    ("MIG", second_gpu(mig=True), WARN, ("on: GPU 1", "-mig 0")),
    ("persistence", second_gpu(persistence=False), WARN, ("off: GPU 1", "-pm 1")),
    ("ECC", second_gpu(ecc_errors=2), WARN, ("GPU 1: 2 errors",)),
    ("ECC", second_gpu(ecc=False), WARN, ("on for some",)),
    ("remapped rows", remapped(failed=True, pending=True), WARN, ("failed: GPU 1", "replaced")),
    ("remapped rows", remapped(pending=True), WARN, ("pending: GPU 1", "gpu-reset")),
    ("remapped rows", remapped(uncorrected=3), NOTE, ("GPU 1: 3",)),
    ("Xid errors", more(log=[XID.format(79, "GPU has fallen off the bus"), XID.format(79, "again")]), WARN,
     ("GPU 0: 79 (2 times)", "dmesg")),
    ("Xid errors", more(log=[XID.format(31, "MMU fault")]), NOTE, ("GPU 0: 31", "a program did")),
    ("Xid errors", more(log=["6,1,1,-;NVRM: Xid (PCI:0000:aa:00): 48, DBE"]), WARN, ("0000:aa:00: 48",)),
    ("NVLinks", second_gpu(nvlinks=17, health=replace(GPU.health, nvlinks_down=1)), WARN, ("GPU 1: 1 down",)),
    ("NVLinks", second_gpu(nvlinks=12), WARN, ("12 to 18 links",)),
    ("NVLinks", sick(nvlink_errors=NvlinkErrors(recovered=1, crc=9)), WARN, ("trained anew: GPU 1: 1 time",)),
    ("NVLinks", sick(nvlink_errors=NvlinkErrors(replayed=2, crc=9)), NOTE, ("18 links of each GPU", "GPU 1: 11")),
    ("NVLinks", sick(nvlink_errors=None), OK, ("18 links",)),
    ("PCIe", sick(pcie=PcieLink(width=8, most=16)), WARN, ("GPU 1: x8 of x16", "slot")),
    ("PCIe", more(gpus=Gpus(gpus=(replace(GPU, health=GpuHealth(pcie=PcieLink(width=16, most=16, generation=1,
     most_generation=5))),))), NOTE, ("x16, generation 1 of 5", "idle")),
    ("PCIe", slots("4", "16"), WARN, ("GPU 1: x4 of x16",)),
    ("PCIe", slots("0", "255"), OK, ("x16, generation 5",)),
    ("GPUDirect", files(nvidia_peermem__refcnt=None), NOTE, ("modprobe nvidia_peermem",)),
    ("interfaces", files(eth0__operstate="down"), NOTE, ("none is up; down: eth0",)),
    ("interfaces", files(eth0__device__vendor=None), OK, ("eth0 (virtual)",)),
    ("interfaces", files(eth0__speed="-1"), OK, ("eth0 (speed unknown)",)),
    ("interfaces", more(files={"/sys/class/net/eth1/operstate": "up", "/sys/class/net/eth1/device/vendor": "1"}), NOTE,
     ("eth0 25 Gbit/s", "eth1", "GLOO_SOCKET_IFNAME")),
    ("host name", more(says={"getent": "127.0.1.1  node7"}), NOTE, ("127.0.1.1, this machine alone", "/etc/hosts")),
    ("host name", more(says={"getent": "10.9.9.9  node7"}), FAIL,
     ("10.9.9.9, which no interface of this machine has (10.0.0.7", "MASTER_ADDR")),
    ("socket names", more(environ={"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "^docker,lo"}), OK,
     ("GLOO_SOCKET_IFNAME=eth0, NCCL_SOCKET_IFNAME=^docker,lo",)),
    ("socket names", more(environ={"NCCL_SOCKET_IFNAME": "ib"}), OK, ("ib",)),
    ("socket names", more(environ={"NCCL_SOCKET_IFNAME": "=ib"}), FAIL, ("=ib leaves no interface", "eth0, ib0")),
    ("socket names", more(environ={"NCCL_SOCKET_IFNAME": "^eth,ib,lo"}), FAIL, ("leaves no interface",)),
    ("socket names", more(environ={"GLOO_SOCKET_IFNAME": "^lo"}), FAIL, ("gloo takes names alone",)),
    ("socket names", more(environ={"GLOO_SOCKET_IFNAME": "eth"}), FAIL, ("GLOO_SOCKET_IFNAME=eth: there is no",)),
    ("socket names", more(environ={"GLOO_SOCKET_IFNAME": "docker0"}), FAIL, ("docker0: there is no such",)),
    ("ranks", all_of(without("environ", "SLURM_JOB_ID"), more(environ={"RANK": "0", "WORLD_SIZE": "2"})), WARN,
     ("RANK=0, WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT not set", "unset RANK WORLD_SIZE")),
    ("ranks", all_of(without("environ", "SLURM_JOB_ID"), more(environ=WORLD | {"RANK": "2"})), WARN,
     ("ranks are 0 to WORLD_SIZE - 1",)),
    ("ranks", all_of(without("environ", "SLURM_JOB_ID"), more(environ=WORLD | {"RANK": "two"})), WARN, ("numbers",)),
    ("ranks", all_of(without("environ", "SLURM_JOB_ID"), more(environ=WORLD)), NOTE, ("one of 2 ranks",)),
    ("host name", more(says={"getent": ""}), WARN, ("no address",)),
    ("link rates", more(), OK, ("gloo: between nodes, all ranks of one, 3.125 GB/s (eth0); mpi: ",)),
    ("link rates", without("rates", "gloo"), NOTE, ("50 GB/s (mlx5_0); none between nodes over gloo",
                                                         "have no bound", "8x400gbit")),
    ("InfiniBand", files(state="1: DOWN"), NOTE, ("no port is active", "mlx5_0:1", "ibstat")),
    ("InfiniBand", files(link_layer="Ethernet"), OK, ("mlx5_0:1 RoCE 400 Gb/sec",)),
    ("machine", files(cpuinfo="flags : fpu hypervisor"), NOTE, ("virtual machine (Acme)", "side by side")),
    ("machine", more(files={"/.dockerenv": ""}), OK, ("in a container",)),
    ("CPUs", more(cpus={0, 1}), NOTE, ("2 of 4 may be used (0-1)", "at most 2 ranks")),
    ("quota", more(files={f"{GROUP}/cpu.max": "150000 100000", "/sys/fs/cgroup/cpu.max": "300000 100000",
                          f"{GROUP}/cpu.stat": "nr_periods 9\nnr_throttled 5"}), WARN,
     ("1.5 CPUs' worth of time on 4 CPUs, stopped 5 times", "at most 1 rank,")),
    ("quota", more(files={f"{GROUP}/cpu.max": "max 100000", "/sys/fs/cgroup/cpu.max": "800000 100000"}), OK,
     ("8 CPUs'",)),
    ("quota", more(files={**V1, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                          "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}), WARN, ("2 CPUs'", "at most 2 ranks")),
    ("quota", more(files={**V1, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                          "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}), OK, ("none",)),
    ("load", more(files_later=BUSY), WARN, ("others use 2.0 of 4 CPUs now", "kworker/0:1 (x) (pid 7) 1.0")),
    ("load", more(files_later=IDLE_CLASS), OK, ("others use 0.0 of 4 CPUs now",)),
    ("load", more(files_later=NICER), OK, ("others use 0.0 of 4 CPUs now",)),
    ("load", files(loadavg="3.50 1 1 1/400 1"), NOTE, ("load average 3.50", "again soon")),
    ("steal", more(files_later={"/proc/stat": "cpu  1000 0 500 90000 100 0 0 2000 0 0"}), WARN,
     ("2.1 %", "more launches")),
    ("governor", files(cpu3__cpufreq__scaling_governor="powersave"), WARN, ("performance and powersave", "cpupower")),
    ("governor", files(scaling_governor=None), NOTE, ("cannot be seen", "virtual machines")),
    ("turbo", files(no_turbo="0"), NOTE, ("on", "echo 1 | sudo tee /sys")),
    ("turbo", all_of(files(no_turbo=None), more(files={f"{CPU}/cpufreq/boost": "1"})), NOTE, ("echo 0 | sudo",)),
    ("SMT", files(cpu0__topology__thread_siblings_list="0,2", cpu2__topology__thread_siblings_list="0,2"), NOTE,
     ("4 CPUs are 3 cores", "at most 3 ranks")),
    ("NUMA", without("programs", "numactl"), NOTE, ("2 nodes, CPUs of 0-1 may be used; no numactl",)),
    ("NUMA", files(node__online="0"), OK, ("1 node",)),
    ("NUMA balancing", files(numa_balancing="1"), WARN, ("on", "kernel.numa_balancing=0")),
    ("clock source", files(current_clocksource="hpet"), WARN, ("hpet", "clocksource=tsc")),
    ("memory", files(meminfo=f"MemTotal: {8 << 20} kB\nMemAvailable: {512 << 10} kB"), WARN,
     ("512 MiB available of 8 GiB",)),
    ("memory", more(files={f"{GROUP}/memory.max": str(2 * GI), f"{GROUP}/memory.current": str(2 * GI - (64 << 20)),
                           f"{GROUP}/memory.stat": "anon 5\ninactive_file 67108864"}), WARN,
     ("128 MiB left of a control group's 2 GiB", "--mem")),
    ("memory", more(files={**V1, "/sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "9223372036854771712"}), OK,
     ("240 GiB available of 256 GiB",)),
    ("/dev/shm", more(spaces={"/dev/shm": (64 << 20, 64 << 20)}), WARN, ("64 MiB", "--shm-size", "medium: Memory")),
    ("swap", files(meminfo=f"MemTotal: {8 << 20} kB\nSwapTotal: {8 << 20} kB\nSwapFree: {4 << 20} kB"), WARN,
     ("4 GiB in use",)),
    ("locked memory", more(limits={resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20)}), WARN, ("8 MiB", "LimitMEMLOCK")),
    ("locked memory", all_of(more(limits={resource.RLIMIT_MEMLOCK: (8 << 20, None)}),
                             files(state=None, rate=None, link_layer=None)), OK, ("only RDMA",)),
    ("open files", more(limits={resource.RLIMIT_NOFILE: (256, 4096)}), WARN, ("256", "ulimit -n 4096")),
    ("open files", more(limits={resource.RLIMIT_NOFILE: (256, 256)}), WARN, ("limits.conf",)),
    ("results", more(lock_error=OSError(errno.ENOSYS, "Function not implemented")), FAIL,
     ("cannot be locked", "-o flock")),
    ("results", more(lock_error=OSError(errno.EROFS, "Read-only file system")), WARN, ("Read-only", "--out DIR")),
    ("results", more(spaces={"/home/ada/runs": (GI, 1 << 20)}), WARN, ("1 MiB free",)),
    ("results", files(mounts="/dev/sda1 / ext4 rw 0 0\nsrv:/h /home nfs4 rw 0 0"), NOTE, ("nfs4", "several hosts")),
    ("results", files(mounts="a / ext4 rw 0 0\nb /home/ad lustre rw 0 0"), OK, ("ext4",)),
    ("temporary", files(mounts="/dev/sda1 / ext4 rw 0 0\nlus /tmp lustre rw 0 0"), WARN,
     ("lustre", "export TMPDIR=/tmp")),
    ("temporary", more(environ={"TMPDIR": "/scratch/gone"}), WARN, ("/scratch/gone is not there", "/tmp is used")),
    ("temporary", more(spaces={"/tmp": (GI, 1 << 20)}), WARN, ("1 MiB free",)),
    ("variables", more(environ={"NCCL_ALGO": "Ring", "UCX_TLS": "x" * 99}), NOTE, ("NCCL_ALGO=Ring", "x" * 60 + "...")),
    ("spoilers", more(environ={"CUDA_LAUNCH_BLOCKING": "1"}), WARN,
     ("every kernel waits", "unset CUDA_LAUNCH_BLOCKING")),
    ("spoilers", more(environ={"TORCH_DISTRIBUTED_DEBUG": "detail"}), WARN, ("checks each collective",)),
    ("spoilers", more(environ={"LD_PRELOAD": "/lib/x.so"}), WARN, ("LD_PRELOAD=/lib/x.so",)),
    ("backend", more(environ={"COMMBENCH_BACKEND": "profile"}), NOTE, ("active: COMMBENCH_BACKEND=profile",)),
    ("backend", more(environ={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}), NOTE, ("AUTOLOAD=0", "unset TORCH_DEVICE")),
    ("backend", more(environ={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "COMMBENCH_BACKEND": "record"}), WARN,
     ("record is asked for",)),
    ("backend", lambda system: system.entries.clear(), NOTE, ("install commbench again",)),
    ("settings files", more(files={"/home/ada/.nccl.conf": "# NCCL_X=1\n\nNCCL_ALGO=Ring"}), NOTE,
     (".nccl.conf (1 for NCCL)",)),
    ("threads", more(environ={"OMP_NUM_THREADS": "8"}), NOTE, ("OMP_NUM_THREADS=8", "4 CPUs")),
    ("threads", more(environ={"OMP_NUM_THREADS": "1"}), OK, ("OMP_NUM_THREADS=1",)),
]  # fmt: skip
FACTS = {"python", "commbench", "huge pages"}  # never anything but ok
SILENT = {"ranks", "socket names", "spoilers", "settings files"}  # say nothing where there is nothing to say


def found(system: System) -> dict[str, Finding]:
    return {check.name: finding for check, finding in examine(system)}


def test_every_check_is_content_with_a_quiet_node() -> None:
    findings = found(node())
    assert set(findings) == {check.name for check in CHECKS} - SILENT
    assert {name: finding for name, finding in findings.items() if finding.status is not OK} == {}
    assert "/opt/venv" in findings["python"].value
    assert findings["torch"].value == "2.8.0+cu128, CUDA 12.8, gloo, NCCL 2.27.3, uses 2 GPUs, loaded in 1.4 s"
    assert findings["GPUs"].value == "2 x NVIDIA H100 80GB HBM3 (80 GiB), driver 550.54"
    assert findings["load"].value == "others use 0.0 of 4 CPUs now, load average 0.10"


@pytest.mark.parametrize(
    ("name", "change", "status", "words"), CHANGES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(CHANGES)]
)
def test_one_change_is_seen(
    name: str, change: Callable[[Recorded], None], status: CheckStatus, words: tuple[str, ...]
) -> None:
    system = node()
    change(system)
    finding = found(system)[name]
    assert finding.status is status, finding
    said = " | ".join((finding.value, finding.why, finding.do))
    assert all(word in said for word in words), said
    assert "could not be read" not in said
    if status in (WARN, FAIL):
        assert finding.why and finding.do
    if status is OK:
        assert not finding.why and not finding.do


def test_every_check_is_seen_to_complain() -> None:
    complaining = {name for name, _, status, _ in CHANGES if status is not OK}
    assert complaining | FACTS == {check.name for check in CHECKS}
    assert len({check.name for check in CHECKS}) == len(CHECKS)  # names are keys in scripts that read the JSON


def test_secrets_and_noise_are_not_shown() -> None:
    system = node()
    shown = {"NCCL_SECRET": "hunter2", "OMP_AUTH": "hunter2", "MKL_TOKEN": "hunter2", "CUDA_HOME": "/usr/local/cuda"}
    system.environ = {**system.environ, **shown, "NCCL_PROTO": "LL"}
    assert found(system)["variables"].value == "NCCL_PROTO=LL"


def test_a_machine_without_anything() -> None:
    findings = found(Recorded())
    assert {"torch"} == {name for name, finding in findings.items() if finding.status is FAIL}
    unread = {name for name, finding in findings.items() if finding.value.startswith("could not be read: ")}
    assert {"CPUs", "memory", "/dev/shm", "load", "host name", "clock source", "results", "temporary"} <= unread
    assert findings["memory"].value == "could not be read: /proc/meminfo: No such file or directory"


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied", "/x"), RuntimeError(""), ValueError("odd\nvery")]
)
def test_nothing_is_raised_where_everything_is_refused(error: Exception) -> None:
    class Refused:
        def __getattr__(self, name: str) -> Any:
            raise error

    findings = found(Refused())  # type: ignore[arg-type]
    for name in {check.name for check in CHECKS} - {"commbench"}:
        assert findings[name].status is NOTE
        assert findings[name].value.startswith("could not be read: ")
        assert "\n" not in findings[name].value


@pytest.mark.parametrize("text", ["", "garbage", "-1", "0", "1:2", "max max", "a b c d e f g h i j"])
def test_nothing_is_raised_by_files_that_hold_something_else(text: str) -> None:
    system = node()
    system.files = dict.fromkeys(system.files, text)
    assert len(found(system)) > 30


def test_no_mpi_library_module() -> None:
    system = node()
    system.mpi = ModuleNotFoundError("No module named 'x'")
    assert found(system)["library"] == finding.note("could not be read: No module named 'x'")


def test_ranges() -> None:
    assert finding.ranges({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8"
    assert finding.numbers("0-2,5,7-8") == {0, 1, 2, 5, 7, 8}
    assert finding.ranges(set()) == "" and finding.numbers("") == set()


# What is printed


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    system = node()
    system.environ = {**system.environ, "LD_PRELOAD": "/lib/[/x]\udce9.so", "NCCL_DEBUG": "TRACE"}
    assert command.run("table", system) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "\x1b" not in out
    assert lines[0] == "software" and lines[1].startswith("  ok    python          3.12.3, ")
    warned = next(i for i, line in enumerate(lines) if line.startswith("  warn"))
    assert "LD_PRELOAD=/lib/[/x]\\udce9.so, NCCL_DEBUG=TRACE" in " ".join(lines)
    assert lines[warned + 1].strip().startswith("why: ")
    assert lines[warned + 2].strip() == "do:  unset NCCL_DEBUG LD_PRELOAD"
    counts = [sum(line.startswith(f"  {status:4}  ") for line in lines) for status in CheckStatus]
    assert lines[-1] == "{} ok, {} note, {} warn, {} fail".format(*counts)
    assert sum(counts) == len(CHECKS) - len(SILENT) + 1  # spoilers speak


def test_lines_are_wrapped_on_a_terminal_and_signs_are_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = node()
    more(lock_error=OSError(errno.ENOSYS, "Function not implemented"))(system)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert command.run("table", system) == 1
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    command.run("table", system)
    plain = capsys.readouterr().out
    assert "\x1b[3" not in plain and "  fail  " in plain.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert max(map(len, plain.splitlines())) <= 100  # paths are not broken


def test_json_is_one_object_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    system = node()
    without("packages", "numpy")(system)
    assert command.run("json", system) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == [check.name for check in CHECKS if check.name not in SILENT]
    for row in rows:
        assert list(row) == ["section", "name", "status", "value", "why", "do"]
        assert all(isinstance(value, str) for value in row.values())
        assert row["status"] in ("ok", "note", "warn", "fail")
    assert {row["name"] for row in rows if row["status"] == "fail"} == {"dependencies"}


# This machine, as it really is
FAKE_TORCH = """
import types
__version__ = "9.9"
version = types.SimpleNamespace(cuda="12.8", hip=None)
cuda = types.SimpleNamespace(is_available=lambda: True, device_count=lambda: 3,
                             nccl=types.SimpleNamespace(version=lambda: (2, 27, 3)))
distributed = types.SimpleNamespace(is_available=lambda: True, is_gloo_available=lambda: True,
                                    is_nccl_available=lambda: True)
print("a greeting that some builds print")
"""


def test_torch_is_asked_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(FAKE_TORCH)
    (package / "distributed").mkdir()
    (package / "distributed/__init__.py").write_text("")
    (package / "distributed/run.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = System().torch
    assert replace(told, seconds=0) == Torch(
        version="9.9", accelerator="CUDA 12.8", gpus=3, gloo=True, nccl="2.27.3", torchrun=True
    )
    (package / "__init__.py").write_text("raise ImportError('libc10.so: cannot open')")
    assert System().torch.error == "ImportError: libc10.so: cannot open"


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    system = System()
    system.__dict__["torch"] = Torch(version="2.8.0", gloo=True, torchrun=True)  # no seconds for a real import
    assert command.run("json", system) in (0, 1)
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    for name in ("python", "commbench", "CPUs", "load", "memory", "results", "temporary", "open files", "quota"):
        assert "could not be read" not in rows[name]["value"], rows[name]
    assert str(tmp_path) in rows["results"]["value"]
    assert list(tmp_path.iterdir()) == []  # it changes nothing


def test_a_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    system = System()
    system.__dict__["torch"] = Torch(error="not asked")
    assert found(system)["results"] == finding.note("could not be read: No such file or directory")


def test_a_program_that_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commbench.doctor.system._PROGRAM_TIMEOUT_S", 0.2)
    with pytest.raises(TimeoutError, match="gave no answer"):
        System().run(sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.undo()
    assert System().run(sys.executable, "-c", "print('fine')") == "fine"


def test_a_launch_is_no_other_load_for_its_ranks() -> None:
    """What began it, what stands above that, its other ranks and their helpers: all but the neighbour on pid 9."""
    family = {50: ("shell", 1), 60: ("commbench", 50), 70: ("fork", 60), 71: ("torchrun", 60), 100: ("rank", 70),
              101: ("rank", 70), 102: ("helper", 101), 9: ("neighbour", 50)}  # fmt: skip

    def stat(ticks: int) -> dict[str, str]:
        return {f"/proc/{pid}/stat": f"{pid} ({name}) R {parent} 1 1 0 -1 0 0 0 0 0 {ticks} 0"
                for pid, (name, parent) in family.items()}  # fmt: skip

    system = node()
    system.files |= stat(0)
    system.files_later = {"/proc/stat": "cpu  1080 0 500 98040 100 0 0 1 0 0", **stat(10)}
    found = look(system, parent=60)
    assert [str(one) for one in found.busiest] == ["neighbour (pid 9) 0.3"]
    assert (round(found.others, 2), found.much) == (0.33, True)
    assert look(node()).busiest == ()
