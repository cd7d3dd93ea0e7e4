"""CPUs: how many this process may use, who else uses them, and what makes their speed vary."""

from __future__ import annotations

from collections.abc import Iterator

from commbench.doctor.finding import Finding, note, numbers, ok, plural, ranges, warn
from commbench.doctor.system import System
from commbench.machine import cgroup

_CPU = "/sys/devices/system/cpu"
_NODE = "/sys/devices/system/node"
# Read by a few instructions in the process; every other clock source is a system call or a slow device.
_FAST_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase", "tod"}


def allowed(system: System) -> Finding:
    here = system.allowed_cpus()
    online = numbers(system.read(f"{_CPU}/online"))
    value = f"{len(here)} of {len(online)} may be used ({ranges(here)})"
    if here < online:
        return note(
            value,
            "ranks beyond that number share CPUs; the others are another job's, or out of bounds by taskset or cpuset",
            f"at most {plural(len(here), 'rank')}; in Slurm ask for more: --cpus-per-task, --exclusive",
        )
    return ok(value)


def quota(system: System) -> Finding:
    least = cgroup.cpu_quota(system)
    cpus = len(system.allowed_cpus())
    if least is None:
        return ok("none")
    value = f"{least:g} CPUs' worth of time on {plural(cpus, 'CPU')}"
    stops = cgroup.throttled_periods(system)
    if least < cpus:
        return warn(
            f"{value}, stopped {stops} times so far",
            "once it is used up the kernel stops every rank until the next period: gaps of tens of milliseconds",
            f"at most {plural(max(1, int(least)), 'rank')}, or give the container more (docker --cpus, limits.cpu)",
        )
    return ok(value)


def governor(system: System) -> Finding:
    governors = {cpu: _governor(system, cpu) for cpu in system.allowed_cpus()}
    names = sorted({name for name in governors.values() if name})
    if not names:
        return note("cannot be seen", "usual in virtual machines: the host sets the clocks")
    if names == ["performance"]:
        return ok("performance")
    return warn(
        " and ".join(names),
        "clocks follow the load with a delay, so short messages are timed on slow clocks",
        "sudo cpupower frequency-set -g performance",
    )


def _governor(system: System, cpu: int) -> str | None:
    return system.text(f"{_CPU}/cpu{cpu}/cpufreq/scaling_governor")


def turbo(system: System) -> Finding | None:
    path, on, off = f"{_CPU}/intel_pstate/no_turbo", "0", "1"
    state = system.text(path)
    if state is None:
        path, on, off = f"{_CPU}/cpufreq/boost", "1", "0"
        state = system.text(path)
    if state is None:
        return None
    if state == on:
        return note(
            "on",
            "clocks then depend on temperature and on how many cores are busy",
            f"to compare runs of different days: echo {off} | sudo tee {path}",
        )
    return ok("off")


def smt(system: System) -> Finding | None:
    here = system.allowed_cpus()
    cores = {system.text(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list") for cpu in here}
    if None in cores:
        return None
    if len(cores) < len(here):
        return note(
            f"{plural(len(here), 'CPU')} are {plural(len(cores), 'core')}",
            "two ranks on one core share its units",
            f"at most {plural(len(cores), 'rank')}, each bound to a core: "
            "mpiexec --bind-to core, srun --hint=nomultithread",
        )
    return ok(f"each of the {plural(len(here), 'CPU')} is a core of its own")


def numa(system: System) -> Finding:
    nodes = numbers(system.read(f"{_NODE}/online"))
    if len(nodes) == 1:
        return ok("1 node")
    here = system.allowed_cpus()
    used = {node for node in nodes if numbers(system.text(f"{_NODE}/node{node}/cpulist") or "") & here}
    value = f"{plural(len(nodes), 'node')}, CPUs of {ranges(used)} may be used"
    if system.which("numactl") is None:
        return note(
            f"{value}; no numactl",
            "memory of another node is slower; torchrun --numa-binding needs numactl to bind ranks",
            "install numactl; bind ranks to nodes",
        )
    return ok(value)


def numa_balancing(system: System) -> Finding | None:
    """Look at the kernel's habit of moving pages to where they are used."""
    if len(numbers(system.read(f"{_NODE}/online"))) == 1:
        return None
    if system.read("/proc/sys/kernel/numa_balancing") != "0":
        return warn(
            "on",
            "the kernel unmaps and moves pages while ranks are timed",
            "sudo sysctl kernel.numa_balancing=0, and bind ranks",
        )
    return ok("off")


def clock_source(system: System) -> Finding:
    name = system.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if name in _FAST_CLOCKS:
        return ok(name)
    return warn(
        name,
        "reading the time takes a microsecond or so instead of tens of nanoseconds, twice a sample",
        "boot with clocksource=tsc tsc=reliable if the CPUs' counters agree; see dmesg | grep -i tsc",
    )


def machine(system: System) -> Finding:
    flags = next(_fields(system.read("/proc/cpuinfo"), "flags", "Features"), "").split()
    maker = " ".join(
        filter(None, (system.text(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")))
    )
    of = f" ({maker})" if maker else ""
    contained = any(system.exists(path) for path in ("/.dockerenv", "/run/.containerenv", "/.singularity.d"))
    contained = contained or bool({"container", "KUBERNETES_SERVICE_HOST", "APPTAINER_NAME"} & set(system.environ))
    where = ", in a container" if contained else ""
    if "hypervisor" in flags:
        return note(
            f"virtual machine{of}{where}",
            "neighbours on the host cannot be seen from here, and take time and bandwidth",
            "compare only what was measured side by side in one run; more launches, or a dedicated host",
        )
    return ok(f"no sign of a virtual machine{of}{where}")


def steal(system: System) -> Finding | None:
    """Look at the time in which this machine wanted a CPU and the host gave it to somebody else."""
    ticks = [int(word) for word in system.read("/proc/stat").splitlines()[0].split()[1:9]]
    share = ticks[7] / max(1, sum(ticks))
    if ticks[7] == 0:
        return None
    value = f"{100 * share:.1f} % since the machine started"
    if share > 0.01:
        return warn(
            value,
            "the host gives this machine's CPUs to others: single samples become many times longer",
            "another instance or a dedicated host; more launches, and look at medians",
        )
    return ok(value)


def _fields(text: str, *names: str) -> Iterator[str]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            yield value.strip()
