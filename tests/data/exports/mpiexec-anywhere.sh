#!/bin/sh
# Starts the ranks of a program with mpiexec: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope anywhere:
#   gloo, any nodes x any ranks, NOTE=it's $(touch pwned) `touch pwned` "$HOME" \ \n\n# no comment\nunset PATH; -x *
# no binding: ranks keep the CPUs that mpiexec gives them
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which mpiexec starts" >&2; exit 2; }
: "${NODES:?how many nodes? The profile does not say}"
: "${RANKS_PER_NODE:?how many ranks on each node? The profile does not say}"
case "$(mpiexec --version 2>&1)" in
*"Open MPI"* | *OpenRTE* | *PRRTE*)
    exec mpiexec --bind-to none --map-by ppr:"$RANKS_PER_NODE":node -n $((NODES * RANKS_PER_NODE)) env 'NOTE=it'"'"'s $(touch pwned) `touch pwned` "$HOME" \ \n
# no comment
unset PATH; -x *' COMMBENCH_BINDING=none 'COMMBENCH_PROFILE=/profiles/moe'"'"'s.json' "$@" ;;
*"Intel(R) MPI"*)
    exec mpiexec -genv I_MPI_PIN 0 -ppn "$RANKS_PER_NODE" -n $((NODES * RANKS_PER_NODE)) env 'NOTE=it'"'"'s $(touch pwned) `touch pwned` "$HOME" \ \n
# no comment
unset PATH; -x *' COMMBENCH_BINDING=none 'COMMBENCH_PROFILE=/profiles/moe'"'"'s.json' "$@" ;;
*) # MPICH, and what is derived from it
    exec mpiexec -bind-to none -ppn "$RANKS_PER_NODE" -n $((NODES * RANKS_PER_NODE)) env 'NOTE=it'"'"'s $(touch pwned) `touch pwned` "$HOME" \ \n
# no comment
unset PATH; -x *' COMMBENCH_BINDING=none 'COMMBENCH_PROFILE=/profiles/moe'"'"'s.json' "$@" ;;
esac
