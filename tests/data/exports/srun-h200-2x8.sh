#!/bin/sh
# Starts the ranks of a program with srun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope h200-2x8:
#   nccl, torch 2.13.0, nccl 2.28.9, NVIDIA H200, 2 nodes x 8 ranks, binding=pci, NCCL_ALGO=Ring;AllReduce:NVLSTree,
#     NCCL_PROTO=Simple, NCCL_MIN_NCHANNELS=16, NCCL_MAX_NCHANNELS=16, NCCL_IB_HCA=^mlx5_4,mlx5_5,
#     NCCL_P2P_NET_CHUNKSIZE=unset, OMP_NUM_THREADS=4
# binding=pci with memory: srun has no words for it, so commbench exec does it
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which srun starts" >&2; exit 2; }
exec srun --nodes=2 --ntasks=16 --ntasks-per-node=8 --distribution=block --kill-on-bad-exit=1 --export=ALL --cpu-bind=none python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-2x8 -- "$@"
