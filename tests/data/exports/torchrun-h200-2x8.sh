#!/bin/sh
# Starts the ranks of a program with torchrun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope h200-2x8:
#   nccl, torch 2.13.0, nccl 2.28.9, NVIDIA H200, 2 nodes x 8 ranks, binding=pci, NCCL_ALGO=Ring;AllReduce:NVLSTree,
#     NCCL_PROTO=Simple, NCCL_MIN_NCHANNELS=16, NCCL_MAX_NCHANNELS=16, NCCL_IB_HCA=^mlx5_4,mlx5_5,
#     NCCL_P2P_NET_CHUNKSIZE=unset, OMP_NUM_THREADS=4
# binding=pci with memory: torchrun has no words for it, so commbench exec does it; run it on each node, with the name
#   of one of them in FIRST_NODE
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which torchrun starts" >&2; exit 2; }
exec torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-id=commbench --rdzv-endpoint="${FIRST_NODE:?the name of one of the nodes}:29400" --nproc-per-node=8 --no-python python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-2x8 -- "$@"
