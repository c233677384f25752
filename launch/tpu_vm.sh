#!/usr/bin/env bash
# Runs a command on all workers of Cloud TPU slices, requested as a queued resource.
#
#   launch/tpu_vm.sh create  --name=N --zone=Z --accelerator-type=v5litepod-256 [--node-count=SLICES]
#   launch/tpu_vm.sh install --name=N --zone=Z [--bucket=B]    waits for the slices, installs tclip
#   launch/tpu_vm.sh train   --name=N --zone=Z -- COMMAND      starts COMMAND, follows its log
#   launch/tpu_vm.sh logs    --name=N --zone=Z [--node=SLICE --worker=WORKER]
#   launch/tpu_vm.sh resume  (flags of create and install) -- COMMAND
#   launch/tpu_vm.sh delete  --name=N --zone=Z
#
# COMMAND is the same everywhere: python -m launch.train --config=... --workdir=/mnt/B/...
# Every worker has the bucket at /mnt/B, with prepared data and compiled programs in it as well. It
# needs a hierarchical namespace: a folder of a flat bucket cannot be renamed, and saving a
# checkpoint fails.
#
# train and logs end with COMMAND, by its exit code, or by 75 when the slices were preempted;
# interrupted, they leave it running. resume makes preempted slices anew, installs, and starts
# COMMAND where it does not run; training goes on from its last checkpoint. So a run on spot slices
# is   while launch/tpu_vm.sh resume --spot ... -- COMMAND; (($? == 75)); do sleep 60; done
#
# --dry-run prints the calls, for resume those of a preempted slice. --project, --internal-ip,
# --tunnel-through-iap and --batch-size are passed to gcloud, all else that create and resume are
# given (--spot, --reserved, --network=...) to `gcloud compute tpus queued-resources create`.
# To reach several workers gcloud wants its key in the agent: ssh-add ~/.ssh/google_compute_engine
#
# Checked against recorded calls and gcloud's own parser, not run on Google Cloud.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"

tpus() { run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }

# Sets `state`; with --dry-run to $1.
look() {
  local state_format="--format=value(state.state)"
  if [[ -n "$dry_run" ]]; then
    tpus describe "$state_format"
    state="$1"
  else
    state="$(tpus describe "$state_format")"
  fi
}

# Ends with the message $1, and by 75 if resume is to be called once more.
gone() {
  [[ "$subcommand" == resume && "$state" == @(SUSPENDING|SUSPENDED) ]] || die "$1"
  echo "$1" >&2
  exit 75
}

# Sets what create needs to know; a runtime version belongs to a generation of TPU.
read_slices() {
  accelerator="$(value_of accelerator-type)"
  slices="$(value_of node-count 1)"
  [[ "$slices" =~ ^[1-9][0-9]*$ ]] || die "--node-count=$slices: give the number of slices"
  case "$accelerator" in
    v5litepod-*) runtime="$(value_of runtime-version v2-alpha-tpuv5-lite)" ;;
    v5p-*) runtime="$(value_of runtime-version v2-alpha-tpuv5)" ;;
    v6e-*) runtime="$(value_of runtime-version v2-alpha-tpuv6e)" ;;
    v4-*) runtime="$(value_of runtime-version tpu-ubuntu2204-base)" ;;
    *) runtime="$(value_of runtime-version)" ;;
  esac
}

create() {
  local nodes=("--node-id=$name")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
  tpus create "--accelerator-type=$accelerator" "--runtime-version=$runtime" \
    "${nodes[@]}" "${create_flags[@]}"
}

install() {
  look ACTIVE
  while [[ "$state" != ACTIVE ]]; do
    [[ "$state" != @(SUSPENDING|SUSPENDED|FAILED|DELETING) ]] || gone "$name is $state: resume it"
    echo "$name is $state" >&2
    run sleep 60
    look ACTIVE
  done
  pack
  run gcloud compute tpus queued-resources scp dist/tclip.tgz "$name:" "${where[@]}" \
    "${ssh_flags[@]}" --node=all --worker=all
  # gcloud passes over workers that it cannot copy to. There the archive is missing.
  everywhere "mkdir -p tclip && tar -xzf tclip.tgz -C tclip && rm tclip.tgz &&" \
    "tclip/launch/worker.sh install $bucket"
}

everywhere() { tpus ssh "${ssh_flags[@]}" --node=all --worker=all "--command=$*"; }

follow() {
  local code=0 minutes=5
  tpus ssh "${ssh_flags[@]}" "--command=tclip/launch/worker.sh follow" || code=$?
  ((code != 0)) || return 0
  look ACTIVE
  # Of a preemption ssh tells first, by its own 255, or the worker, by that of a signal.
  while [[ "$state" == ACTIVE ]] && ((code > 128 && minutes-- > 0)); do
    run sleep 60
    look ACTIVE
  done
  if [[ "$state" != ACTIVE ]]; then
    echo "$name is $state" >&2
    code=75
  fi
  return "$code"
}

# gcloud's ssh ends well, having done nothing, where the slices are gone.
need_slices() {
  look ACTIVE
  [[ "$state" == ACTIVE ]] || gone "$name is $state, not ACTIVE"
}

train() {
  need_slices
  everywhere tclip/launch/worker.sh start "$(quote "${command[@]}")"
  follow
}

logs() {
  need_slices
  follow
}

resume() {
  look SUSPENDED
  while [[ "$state" == SUSPENDING ]]; do
    run sleep 60
    look SUSPENDED
  done
  if [[ "$state" == @(SUSPENDED|FAILED) ]]; then
    delete
    create
  fi
  install
  train
}

delete() { tpus delete --force --quiet; }

parse "create install train logs resume delete" "$@"
need_name
zone="$(value_of zone)"
where=("--zone=$zone")
ssh_flags=()
create_flags=()
for flag in "${flags[@]}"; do
  case "$subcommand $flag" in
    *" --zone="* | @(install|resume)" --bucket="*) ;;
    @(create|resume)" --"@(accelerator-type|runtime-version|node-count)"="*) ;;
    *" --project="*) where+=("$flag") ;;
    *" --internal-ip" | *" --tunnel-through-iap" | *" --batch-size="*) ssh_flags+=("$flag") ;;
    "logs --node="* | "logs --worker="*) ssh_flags+=("$flag") ;;
    @(create|resume)" "*) create_flags+=("$flag") ;;
    *) die "$subcommand has no flag $flag" ;;
  esac
done
read_bucket
if [[ "$subcommand" == @(create|resume) ]]; then read_slices; fi
"$subcommand"
