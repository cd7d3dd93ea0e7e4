#!/bin/sh
# Starts the ranks of a program with torchrun: sh THIS-FILE PROGRAM ARGUMENTS
# Written by commbench 0.1.0 from /profiles/moe's.json, scope anywhere:
#   gloo, any nodes x any ranks, NOTE=it's $(touch pwned) `touch pwned` "$HOME" \ \n\n# no comment\nunset PATH; -x *
# no binding: ranks keep the CPUs that torchrun gives them; run it on each node, with the name of one of them in
#   FIRST_NODE
set -eu
[ $# -gt 0 ] || { echo "usage: sh $0 PROGRAM ARGUMENTS, which torchrun starts" >&2; exit 2; }
: "${NODES:?how many nodes? The profile does not say}"
: "${RANKS_PER_NODE:?how many ranks on each node? The profile does not say}"
exec torchrun --nnodes="$NODES" --rdzv-backend=c10d --rdzv-id=commbench --rdzv-endpoint="${FIRST_NODE:?the name of one of the nodes}:29400" --nproc-per-node="$RANKS_PER_NODE" --no-python env 'NOTE=it'"'"'s $(touch pwned) `touch pwned` "$HOME" \ \n
# no comment
unset PATH; -x *' COMMBENCH_BINDING=none 'COMMBENCH_PROFILE=/profiles/moe'"'"'s.json' "$@"
