#!/usr/bin/env bash
# Start a real SLURM cluster on one machine for tests. It needs root on Debian and no systemd; its GPUs are fake.
#   start_slurm.sh up | down | status
# It installs Debian packages and creates links in /etc/slurm. It does not touch an existing configuration.
# SLURM_TEST_DIR: its folder (default /tmp/slurm-test). SLURM_TEST_GPUS: number of fake GPUs (default 2).
# CGROUP=1: limit memory by cgroups, as clusters do.
set -euo pipefail
D=${SLURM_TEST_DIR:-/tmp/slurm-test}
CGROUP=${CGROUP:-0}
GPUS=${SLURM_TEST_GPUS:-2}
HOST=$(hostname -s)
PATH=$PATH:/usr/sbin:/sbin # location of the daemons, not on the path after `su` without `-`

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

wait_for() { # seconds, command...
  local n=$1
  shift
  for _ in $(seq $((n * 5))); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done
  echo "timed out: $*" >&2
  return 1
}

install_packages() {
  # Check each name separately: with several names, `command -v` succeeds if any of them exists.
  local name missing=0
  for name in munged slurmctld slurmd sbatch; do command -v "$name" >/dev/null || missing=1; done
  [ "$missing" = 1 ] || return 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update >&2
  apt-get -qq install -y --no-install-recommends munge slurmctld slurmd slurm-client >"$D/apt.log" 2>&1 ||
    { tail -20 "$D/apt.log" >&2; return 1; }
}

configure() {
  local task="ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherParams=OverMemoryKill"
  if [ "$CGROUP" = 1 ]; then
    task="ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup"
  fi
  # More CPUs than the machine has let jobs run side by side. MinJobAge: the executor asks squeue about finished jobs.
  cat >"$D/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge.socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.log
MpiDefault=none
SwitchType=switch/none
$task
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=600
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 Gres=gpu:h200:$GPUS State=UNKNOWN
PartitionName=cpu Nodes=$HOST Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10 DefMemPerCPU=500
PartitionName=gpu Nodes=$HOST MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10 DefMemPerCPU=500
PartitionName=low Nodes=$HOST MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1 GraceTime=5 PreemptMode=REQUEUE DefMemPerCPU=500
CONF
  # SLURM sets CUDA_VISIBLE_DEVICES only if GPUs have device files, not just a count.
  for i in $(seq 0 $((GPUS - 1))); do [ -e "$D/fakegpu$i" ] || mknod "$D/fakegpu$i" c 1 3; done
  echo "NodeName=$HOST Name=gpu Type=h200 File=$D/fakegpu[0-$((GPUS - 1))]" >"$D/gres.conf"
  local ram=no
  [ "$CGROUP" = 1 ] && ram=yes
  printf 'CgroupAutomount=no\nConstrainRAMSpace=%s\nConstrainSwapSpace=no\nConstrainDevices=no\n' "$ram" >"$D/cgroup.conf"
  # The executor removes SLURM_CONF from the environment inside a job, so the configuration must be in /etc/slurm.
  mkdir -p /etc/slurm
  for f in slurm.conf gres.conf cgroup.conf; do
    if [ -e "/etc/slurm/$f" ] && [ ! -L "/etc/slurm/$f" ]; then
      echo "/etc/slurm/$f is a real file: this machine's own SLURM is left alone" >&2
      return 1
    fi
    ln -sfn "$D/$f" "/etc/slurm/$f"
  done
}

up() {
  [ "$(id -u)" = 0 ] || { echo "start_slurm.sh needs root" >&2; return 1; }
  mkdir -p "$D/state" "$D/spool"
  chmod 755 "$D"
  install_packages
  configure
  if ! alive "$D/munged.pid"; then
    [ -s "$D/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$D/munge.key")
    rm -f "$D"/munge.socket*
    munged --force --key-file="$D/munge.key" --socket="$D/munge.socket" --pid-file="$D/munged.pid" \
      --log-file="$D/munged.log" --seed-file="$D/munged.seed" >&2
  fi
  # The option -c discards the jobs of an earlier start.
  alive "$D/slurmctld.pid" || { rm -f "$D/slurmctld.pid"; slurmctld -c -f "$D/slurm.conf" </dev/null >&2; }
  alive "$D/slurmd.pid" || { rm -f "$D/slurmd.pid"; slurmd -f "$D/slurm.conf" </dev/null >&2; }
  wait_for 20 bash -c 'sinfo -h -o %T | grep -qE "idle|mixed|allocated"'
  echo "SLURM is up ($D)" >&2
}

down() {
  if alive "$D/slurmctld.pid"; then scancel --user="$(id -un)" 2>/dev/null || true; fi
  for name in slurmd slurmctld munged; do
    if alive "$D/$name.pid"; then
      local pid
      pid=$(cat "$D/$name.pid")
      kill "$pid"
      for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
      kill -9 "$pid" 2>/dev/null || true
      rm -f "$D/$name.pid"
    fi
  done
  for f in slurm.conf gres.conf cgroup.conf; do
    if [ "$(readlink "/etc/slurm/$f" 2>/dev/null)" = "$D/$f" ]; then rm -f "/etc/slurm/$f"; fi
  done
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  status) for n in munged slurmctld slurmd; do alive "$D/$n.pid" && echo "$n $(cat "$D/$n.pid")"; done; sinfo || true ;;
  *) echo "usage: $0 up|down|status" >&2; exit 2 ;;
esac
