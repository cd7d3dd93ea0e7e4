#!/bin/sh
# Starts the ranks of a program with srun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope h200-cpus:
#   nccl, torch 2.13.0, nccl 2.28.9, NVIDIA H200, 2 nodes x 8 ranks, binding=pci, NCCL_ALGO=Ring
# binding=pci: srun has no words for it, so commbench exec does it
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which srun starts" >&2; exit 2; }
exec srun --nodes=2 --ntasks=16 --ntasks-per-node=8 --distribution=block --kill-on-bad-exit=1 --export=ALL --cpu-bind=none python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-cpus -- "$@"
