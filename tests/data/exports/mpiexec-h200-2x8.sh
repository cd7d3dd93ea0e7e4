#!/bin/sh
# Starts the ranks of a program with mpiexec: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope h200-2x8:
#   nccl, torch 2.13.0, nccl 2.28.9, NVIDIA H200, 2 nodes x 8 ranks, binding=pci, NCCL_ALGO=Ring;AllReduce:NVLSTree,
#     NCCL_PROTO=Simple, NCCL_MIN_NCHANNELS=16, NCCL_MAX_NCHANNELS=16, NCCL_IB_HCA=^mlx5_4,mlx5_5,
#     NCCL_P2P_NET_CHUNKSIZE=unset, OMP_NUM_THREADS=4
# binding=pci with memory: mpiexec has no words for it, so commbench exec does it
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which mpiexec starts" >&2; exit 2; }
case "$(mpiexec --version 2>&1)" in
*"Open MPI"* | *OpenRTE* | *PRRTE*)
    exec mpiexec --bind-to none --map-by ppr:8:node -n 16 python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-2x8 -- "$@" ;;
*"Intel(R) MPI"*)
    exec mpiexec -genv I_MPI_PIN 0 -ppn 8 -n 16 python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-2x8 -- "$@" ;;
*) # MPICH, and what is derived from it
    exec mpiexec -bind-to none -ppn 8 -n 16 python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope h200-2x8 -- "$@" ;;
esac
