"""CUDA C++ compiled when it is first used (NVRTC), and launched through the driver: no compiler need be installed.

Needs cuda-bindings, which every CUDA build of torch since 2.9 brings.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent


class CudaError(RuntimeError):
    """A call of the driver or the compiler that failed, with what it says of itself."""


def check(result: tuple[Any, ...]) -> Any:
    """Return what a call of cuda.bindings gave, without its status. Raises `CudaError`."""
    status, *values = result
    if int(status):
        raise CudaError(f"CUDA: {status!r}: {_text(status)}")
    return values[0] if len(values) == 1 else tuple(values)


def _text(status: Any) -> str:
    from cuda.bindings import driver, nvrtc

    try:
        if isinstance(status, nvrtc.nvrtcResult):
            text = nvrtc.nvrtcGetErrorString(status)[1]
        else:
            text = driver.cuGetErrorString(status)[1]
    except Exception:  # an unknown status of a newer driver
        return "unknown"
    return text.decode() if isinstance(text, bytes) else str(text)


def compile_source(name: str, architecture: str, defines: Mapping[str, int]) -> bytes:
    """Compile machine code of `name`, a file beside this one, for `architecture` (as "sm_90"). Needs no GPU."""
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture={architecture}", "--std=c++17", f"-I{SOURCES}", "-lineinfo"]
    options += [f"-D{key}={value}" for key, value in sorted(defines.items())]
    source = (SOURCES / name).read_bytes()
    program = check(nvrtc.nvrtcCreateProgram(source, name.encode(), 0, [], []))
    status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(status[0]):
        log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
        check(nvrtc.nvrtcGetProgramLog(program, log))
        raise CudaError(f"{name} does not compile for {architecture}:\n{log.decode(errors='replace').strip()}")
    cubin: bytes = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
    check(nvrtc.nvrtcGetCUBIN(program, cubin))
    check(nvrtc.nvrtcDestroyProgram(program))
    return cubin


class Kernel:
    """A kernel, launched on a stream with arguments that lie ready in memory."""

    def __init__(self, function: Any) -> None:
        from cuda.bindings import driver

        self._launch = driver.cuLaunchKernel
        self._function = function

    def bind(self, argument: ctypes.Structure, *, blocks: int, threads: int) -> KernelLaunch:
        """Bind `argument`, the kernel's only one, by value."""
        return KernelLaunch(self._launch, self._function, argument, blocks, threads)


class KernelLaunch:
    """A kernel with its argument and its size. Calling it costs a few microseconds of the host."""

    def __init__(self, launch: Any, function: Any, argument: ctypes.Structure, blocks: int, threads: int) -> None:
        self._argument = argument  # the driver copies it at each launch
        self._pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        self._at = ctypes.addressof(self._pointers)
        self._launch, self._function = launch, function
        self._size = blocks, 1, 1, threads, 1, 1, 0

    def __call__(self, stream: int) -> None:
        (status,) = self._launch(self._function, *self._size, stream, self._at, 0)
        if status:
            check((status,))


@functools.cache
def load(name: str, device: int, defines: tuple[tuple[str, int], ...]) -> Any:
    """Load the module of `name` on `device`, compiled at the first call. It stays: graphs may hold its kernels."""
    import torch
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # the device's context exists and is current
        return check(driver.cuModuleLoadData(compile_source(name, f"sm_{major}{minor}", dict(defines))))


def kernel(name: str, function: str, device: int, **defines: int) -> Kernel:
    """Return the kernel `function` of the source file `name`, for `device`."""
    from cuda.bindings import driver

    module = load(name, device, tuple(sorted(defines.items())))
    return Kernel(check(driver.cuModuleGetFunction(module, function.encode())))
