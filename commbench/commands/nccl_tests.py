"""Flags of nccl-tests: the values of those that are ours too, and what to type in place of the others."""

from __future__ import annotations

from commbench.errors import UsageError

_DTYPES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16", "int": "int32", "char": "uint8", "int8": "uint8"}
# Types that nccl-tests has and we have not. What only moves data takes as long for as many bytes of any type.
_OTHER_DTYPES = ("double", "int64", "uint64", "uint32", "fp8_e4m3", "fp8_e5m2", "f8e4m3", "f8e5m2")
_OPS = {"all": "sum,prod,min,max"}
_OTHER_OPS = ("avg", "mulsum")
# Letters and words -> what to type here.
_INSTEAD = {
    ("-c", "--check"): "leave it out: every timed call is compared with what is right",
    ("-t", "--nthreads"): "leave it out: each rank is a process of its own; -g N says how many on a node",
    ("-i", "--stepbytes"): "give the sizes by a factor, -f 2, or one by one: sizes.list=1M,2M,3M",
    ("-m", "--agg_iters"): "mode=pipelined times calls back to back",
    ("-N", "--run_cycles"): "launches=N measures all in N launches, and gives intervals over them",
    ("-G", "--cudagraph"): "mode=graph times 20 calls in a CUDA graph",
    ("-a", "--average"): "the table shows the slowest rank; time_us_mean is the mean over ranks (--format json)",
    ("-z", "--blocking"): "mode=isolated waits for each call, mode=pipelined does not",
    ("-R", "--local_register"): "buffers=registered (as -R 1) or buffers=symmetric (as -R 2)",
    ("-D", "--device_implementation"): "algorithm=symm_store is ours that the GPUs do themselves",
    ("-J", "--output_file"): "--format json > FILE; rows are in the run folder in any case",
    ("-T", "--timeout"): "timeout=SECONDS",
    ("-C", "--report_cputime"): "host_us is what a call costs the thread that makes it (--format json)",
    ("-p", "--parallel_init"): "leave it out: ranks start beside each other",
    ("-x", "--cta_policy"): "env.NCCL_CTA_POLICY=N",
    ("--minbytes",): "-b SIZE",
    ("--maxbytes",): "-e SIZE",
    ("--stepfactor",): "-f N",
    ("--datatype",): "-d TYPE",
    ("--ngpus",): "-g N",
    ("--warmup_iters",): "-w N",
}


def key_value(key: str, value: str) -> str:
    """Return our name of what `-d` or `-o` of nccl-tests may be. Raises `UsageError` for what we have not."""
    if key == "dtype" and value in _OTHER_DTYPES:
        raise UsageError(
            f"-d {value}: there is no such type here",
            hint="calls that only move data take as long for as many bytes of any type: -d uint8, -d bf16, -d fp32",
        )
    if key == "op" and value in _OTHER_OPS:
        raise UsageError(
            f"-o {value}: there is no such operation here", hint="it moves the bytes of a sum: -o sum; or -o all"
        )
    return {"dtype": _DTYPES, "op": _OPS}.get(key, {}).get(value, value)


def instead_of(option: str) -> str:
    """Return what to type in place of a flag of nccl-tests; "" where it is none, or ours as well."""
    return next((text for flags, text in _INSTEAD.items() if option in flags), "")
