#!/bin/sh
# Starts the ranks of a program with srun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope anywhere:
#   gloo, any nodes x any ranks, NOTE=it's $(touch pwned) `touch pwned` "$HOME" \ \n\n# no comment\nunset PATH; -x *
# no binding: ranks keep the CPUs that srun gives them
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which srun starts" >&2; exit 2; }
: "${NODES:?how many nodes? The profile does not say}"
: "${RANKS_PER_NODE:?how many ranks on each node? The profile does not say}"
exec srun --nodes="$NODES" --ntasks=$((NODES * RANKS_PER_NODE)) --ntasks-per-node="$RANKS_PER_NODE" --distribution=block --kill-on-bad-exit=1 --export=ALL --cpu-bind=none env 'NOTE=it'"'"'s $(touch pwned) `touch pwned` "$HOME" \ \n
# no comment
unset PATH; -x *' COMMBENCH_BINDING=none 'COMMBENCH_PROFILE=/profiles/moe'"'"'s.json' "$@"
