#!/usr/bin/env bash
# The batch job of slurm.sh: runs the command in every task of the job.
#
# On SIGTERM launch.train saves a checkpoint and exits with 75. The job then goes back into the
# queue, unless Slurm itself is ending it: it requeues preempted jobs, and cancelled ones are over.
set -euo pipefail
# Slurm runs a copy of this file, in the folder that --chdir names.
export TCLIP_EXTRAS=cuda
source launch/environment.sh
trap : TERM # Slurm signals the tasks; this shell has to outlive them.

code=0
# A task that is killed ends the others after two minutes, time to save for those that still can.
srun --kill-on-bad-exit=0 --wait=120 "$@" || code=$?
if ((code == 75)) && [[ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
