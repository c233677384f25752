#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster, as a workload of XPK (pip install xpk).
#
#   launch/gke.sh install --cluster=C --docker-image=IMAGE [--bucket=B]
#   launch/gke.sh train   --name=N --cluster=C --docker-image=IMAGE [--bucket=B]
#                         --tpu-type=v5litepod-256 [--num-slices=SLICES] -- COMMAND
#   launch/gke.sh logs    --name=N --cluster=C
#   launch/gke.sh resume  (flags of train) -- COMMAND
#   launch/gke.sh delete  --name=N --cluster=C
#
# COMMAND is the same everywhere: python -m launch.train --config=... --workdir=/mnt/B/...
# install builds IMAGE (REGION-docker.pkg.dev/PROJECT/REPOSITORY/tclip) in the cloud, and has the
# workloads of the cluster mount the bucket at /mnt/B. It needs a hierarchical namespace: a folder
# of a flat bucket cannot be renamed, and saving a checkpoint fails. Prepared data and compiled
# programs are kept in it as well. The cluster comes from
#   xpk cluster create --cluster=C --tpu-type=v5litepod-256 --spot --enable-gcsfuse-csi-driver
#
# train queues the workload and returns. The cluster restarts a preempted one, which goes on from
# its last checkpoint; resume queues anew what has failed for good. --zone and --project are passed
# to all calls, what else train and resume are given (--spot, --priority=high) to
# `xpk workload create`. --dry-run prints the calls.
#
# Checked against recorded calls and the parser of xpk 1.16, not run on Google Cloud.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

install() {
  pack
  run gcloud builds submit dist/tclip.tgz "--tag=$image" "${project[@]}"
  [[ -n "$bucket" ]] || return 0
  # As in worker.sh.
  local caching=metadata-cache:ttl-secs:60,metadata-cache:negative-ttl-secs:0
  run xpk storage attach "$bucket" "${where[@]}" --type=gcsfuse "--mount-point=/mnt/$bucket" \
    --readonly=false --auto-mount=true --size=1000 \
    "--mount-options=implicit-dirs,$caching,file-system:rename-dir-limit:0"
}

train() {
  local line cache="/mnt/$bucket/.cache/tclip" caches=()
  # What one worker prepares or compiles serves all, and those after a restart.
  [[ -z "$bucket" ]] ||
    caches=("--env=TCLIP_DATA_DIR=$cache" "--env=JAX_COMPILATION_CACHE_DIR=$cache/xla")
  line="exec $(quote "${command[@]}")" # exec: signals reach the command
  # Kubernetes reads $$ as $, and $(NAME) as a variable.
  run xpk workload create "--workload=$name" "${where[@]}" "--docker-image=$image" \
    --max-restarts=100 --restart-on-exit-codes=75 --termination-grace-period-seconds=300 \
    "${caches[@]}" "${workload_flags[@]}" "--command=${line//\$/\$\$}"
}

# --quiet: without asking whether to replace the failed workload of this name.
resume() {
  workload_flags+=(--quiet)
  train
}

logs() {
  local job=jobset.sigs.k8s.io pod=batch.kubernetes.io
  # xpk looks the cluster up and points kubectl to it.
  run xpk workload list "${where[@]}" "--filter-by-job=$name"
  run kubectl logs --follow --tail=-1 --all-containers \
    "--selector=$job/jobset-name=$name,$job/job-index=0,$pod/job-completion-index=0"
}

delete() { run xpk workload delete "--workload=$name" "${where[@]}"; }

parse "install train logs resume delete" "$@"
[[ "$subcommand" == install ]] || need_name
cluster="$(value_of cluster)"
where=("--cluster=$cluster")
project=()
workload_flags=()
for flag in "${flags[@]}"; do
  case "$subcommand $flag" in
    *" --cluster="* | @(install|train|resume)" --"@(docker-image|bucket)"="*) ;;
    *" --zone="*) where+=("$flag") ;;
    *" --project="*) where+=("$flag") && project=("$flag") ;;
    @(train|resume)" "*) workload_flags+=("$flag") ;;
    *) die "$subcommand has no flag $flag" ;;
  esac
done
read_bucket
if [[ "$subcommand" == @(install|train|resume) ]]; then image="$(value_of docker-image)"; fi
"$subcommand"
