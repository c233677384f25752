#!/usr/bin/env bash
# Runs a command on GPU nodes through Slurm, one process a GPU.
#
#   launch/slurm.sh install
#   launch/slurm.sh train  --name=N --nodes=4 --gpus-per-node=8 [--time=24:00:00] -- COMMAND
#   launch/slurm.sh logs   --name=N
#   launch/slurm.sh delete --name=N
#
# COMMAND is the same everywhere: python -m launch.train --config=... --workdir=/shared/...
# Called on a login node, in a checkout that all nodes see; install makes its .venv, with CUDA.
#
# train queues a job and returns; its other flags (--partition, --account, --time) go to sbatch. A
# job that is preempted, or out of time, saves a checkpoint, goes back into the queue and continues
# there. After any other end, train with the same flags continues it. Jobs of one name run one
# after the other. --dry-run prints the calls.
#
# Checked against recorded calls and a Slurm of one node without GPUs, not run on GPUs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
folder="$root/runs/slurm"

install() { run env TCLIP_EXTRAS=cuda bash "$root/launch/environment.sh"; }

train() {
  local gpus
  gpus="$(value_of gpus-per-node)" # N or TYPE:N
  [[ "${gpus##*:}" =~ ^[1-9][0-9]*$ ]] || die "--gpus-per-node=$gpus: give their number"
  run mkdir -p "$folder"
  # SIGTERM five minutes before the time limit: enough to save a checkpoint.
  run sbatch "--job-name=$name" --dependency=singleton --requeue --signal=TERM@300 \
    "--chdir=$root" "--output=$folder/$name.log" --open-mode=append \
    "--ntasks-per-node=${gpus##*:}" "${flags[@]}" "$root/launch/slurm_job.sh" "${command[@]}"
}

logs() { run tail -n 1000 -F "$folder/$name.log"; }

delete() { run scancel --me "--name=$name"; }

parse "install train logs delete" "$@"
[[ "$subcommand" == install ]] || need_name
[[ "$subcommand" == train || ${#flags[@]} == 0 ]] || die "$subcommand has no flag ${flags[0]}"
"$subcommand"
