#!/bin/sh
# Starts the ranks of a program with mpiexec: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope masks:
#   mpi, 1 node x 2 ranks, binding=explicit, UCX_TLS=unset, UCX_IB_SL=1
# binding=explicit with memory: mpiexec has no words for it, so commbench exec does it
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which mpiexec starts" >&2; exit 2; }
case "$(mpiexec --version 2>&1)" in
*"Open MPI"* | *OpenRTE* | *PRRTE*)
    exec mpiexec --bind-to none --map-by slot -n 2 python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope masks -- "$@" ;;
*"Intel(R) MPI"*)
    exec mpiexec -genv I_MPI_PIN 0 -n 2 python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope masks -- "$@" ;;
*) # MPICH, and what is derived from it
    exec mpiexec -bind-to none -n 2 python3 -m commbench exec --profile '/profiles/moe'"'"'s.json' --scope masks -- "$@" ;;
esac
