#!/usr/bin/env bash
# A Slurm of one machine for the tests in this folder: several nodes, each a slurmd of its own.
#
#     apt-get install slurmctld slurmd slurm-client munge     # once, as root
#     tests/slurm/local.sh start DIR [NODES [CPUS]]           # 2 nodes of 4 CPUs unless told; as root
#     export SLURM_CONF=DIR/slurm.conf                        # printed by start: sinfo, srun, sbatch now use it
#     tests/slurm/local.sh stop DIR                           # cancels all its jobs and ends its daemons
#
# All state is in DIR, which a path without spaces must name. The CPUs are claimed, not real, so that small machines
# can hold several ranks. Both commands may be repeated.
set -euo pipefail

usage() {
    echo "usage: $0 start DIR [NODES [CPUS]] | stop DIR" >&2
    exit 2
}

[ $# -ge 2 ] || usage
action=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
nodes=${3:-2}
cpus=${4:-4}
port=${SLURM_LOCAL_PORT:-16817} # of slurmctld; the nodes take the next ones
# Ranks look up the name of their first node. This prefix and a digit is a loopback address in hexadecimal, so it is
# found without an entry in /etc/hosts: 0x7f000001 is 127.0.0.1.
prefix=0x7f00000
export SLURM_CONF=$dir/slurm.conf

alive() { # PIDFILE NAME: is it running, and is it still that program?
    [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]
}

need() {
    for program in slurmctld slurmd munged sinfo; do
        PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || {
            echo "$program is missing: apt-get install slurmctld slurmd slurm-client munge" >&2
            exit 1
        }
    done
    [ "$(id -u)" = 0 ] || { echo "slurmd needs root" >&2; exit 1; }
}

configure() {
    local host
    host=$(hostname -s)
    mkdir -p "$dir/state" "$dir/munge"
    chmod 755 "$dir" "$dir/munge"
    [ -s "$dir/munge/key" ] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
    cat >"$dir/slurm.conf" <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmdLogFile=$dir/slurmd-%n.log
SlurmdSpoolDir=$dir/spool-%n
# Nothing here needs control groups, which containers often lack.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=3
ReturnToService=2
# The CPUs of the next lines count, not those of the machine.
SlurmdParameters=config_overrides
NodeName=${prefix}[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    echo "CgroupAutomount=no" >"$dir/cgroup.conf"
}

start() {
    need
    alive "$dir/slurmctld.pid" slurmctld || configure
    export PATH=$PATH:/usr/sbin
    alive "$dir/munge/pid" munged || munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    alive "$dir/slurmctld.pid" slurmctld || slurmctld
    for ((i = 1; i <= nodes; i++)); do
        alive "$dir/slurmd-$prefix$i.pid" slurmd || slurmd -N "$prefix$i"
    done
    for ((i = 0; i < 60; i++)); do
        if [ "$(sinfo --noheader --Node --states=idle,alloc,mix --format=%N 2>/dev/null | wc -l)" -ge "$nodes" ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    echo "the nodes did not come up; see the logs in $dir" >&2
    exit 1
}

stop() {
    if alive "$dir/slurmctld.pid" slurmctld; then
        squeue --noheader --format=%A | xargs -r scancel || true
        for ((i = 0; i < 40; i++)); do
            [ -z "$(squeue --noheader 2>/dev/null)" ] && break
            sleep 0.5
        done
    fi
    for file in "$dir"/slurmd-*.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
        case $file in */slurmd-*) name=slurmd ;; */slurmctld.pid) name=slurmctld ;; *) name=munged ;; esac
        if alive "$file" "$name"; then
            pid=$(cat "$file")
            kill "$pid"
            for ((i = 0; i < 40; i++)); do
                [ -d "/proc/$pid" ] || break
                sleep 0.25
            done
        fi
    done
}

case $action in
start) start ;;
stop) stop ;;
*) usage ;;
esac
