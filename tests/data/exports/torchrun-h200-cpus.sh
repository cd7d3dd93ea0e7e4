#!/bin/sh
# Starts the ranks of a program with torchrun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope h200-cpus:
#   nccl, torch 2.13.0, nccl 2.28.9, NVIDIA H200, 2 nodes x 8 ranks, binding=pci, NCCL_ALGO=Ring
# binding=pci: torchrun is asked for it, and commbench exec sees to it; it needs numactl for that; run it on each node,
#   with the name of one of them in FIRST_NODE
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which torchrun starts" >&2; exit 2; }
exec torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-id=commbench --rdzv-endpoint="${FIRST_NODE:?the name of one of the nodes}:29400" --nproc-per-node=8 --numa-binding=node --no-python python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-cpus -- "$@"
