#!/bin/sh
# Starts the ranks of a program with srun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope masks:
#   mpi, 1 node x 2 ranks, binding=explicit, UCX_TLS=unset, UCX_IB_SL=1
# binding=explicit with memory: srun is asked for it, and commbench exec sees to it
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which srun starts" >&2; exit 2; }
exec srun --nodes=1 --ntasks=2 --ntasks-per-node=2 --distribution=block --kill-on-bad-exit=1 --export=ALL --cpu-bind=mask_cpu:0x10f,0xf0 --mem-bind=local python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope masks -- "$@"
