#!/usr/bin/env bash
# What tpu_vm.sh runs on every worker, over ssh.
#
#   launch/worker.sh install [BUCKET]   makes the environment, mounts the bucket at /mnt/BUCKET
#   launch/worker.sh start COMMAND...   starts the command, which outlives the session
#   launch/worker.sh follow             prints its log until it ends, and exits with its code
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
state="$HOME/.tclip-run" # command, pid, code and lock of what was started last, all logs

environment() {
  local cache
  export TCLIP_EXTRAS=tpu
  source "$root/launch/environment.sh"
  [[ -f "$state/bucket" ]] || return 0
  # What one worker prepares or compiles serves all, and the slices after a preemption.
  cache="/mnt/$(<"$state/bucket")/.cache/tclip"
  export TCLIP_DATA_DIR="$cache" JAX_COMPILATION_CACHE_DIR="$cache/xla"
}

install() {
  if [[ -n "${1:-}" ]]; then mount_bucket "$1"; fi
  # The slices come with Ubuntu 22.04 and its Python 3.10.
  if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python3 -m pip install --quiet --user uv
    python3 -m uv python install 3.12
    PYTHON="$(python3 -m uv python find 3.12)"
    export PYTHON
  fi
  environment
}

mount_bucket() {
  local folder="/mnt/$1"
  mkdir -p "$state"
  echo "$1" >"$state/bucket"
  if mountpoint --quiet "$folder"; then return; fi
  if ! type -P gcsfuse >/dev/null; then install_gcsfuse; fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -u)" "$folder"
  # On TPU machines gcsfuse would by itself believe for ever what it knows of a file, which another
  # worker may rewrite, and rename folders of a flat bucket file by file. No file that another
  # worker has just made may seem absent.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=60 --metadata-cache-negative-ttl-secs=0 \
    --rename-dir-limit=0 "$1" "$folder"
}

install_gcsfuse() {
  local site=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A new machine may still be busy updating itself.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse
}

# The lock is held by all processes of the command, and free once the last of them has ended.
start() {
  local log
  mkdir -p "$state"
  exec 9>>"$state/lock"
  # Not all workers end at once: the last moments of a run that is over are waited for.
  if ! flock --timeout 30 9; then
    printf '%s\0' "$@" | cmp --quiet - "$state/command" ||
      die "busy with another command: $(tr '\0' ' ' <"$state/command")"
    echo "runs already"
    return
  fi
  # What is left of the command before is not to be taken for this one's.
  rm -f "$state/code" "$state/pid"
  environment
  log="$state/$(date +%Y%m%d-%H%M%S).log"
  ln -sfn "$log" "$state/log"
  quote "$@" >>"$log"
  printf '%s\0' "$@" >"$state/command"
  # shellcheck disable=SC2016  # for the inner shell to expand
  setsid bash -c '"${@:2}"; echo "$?" >"$1"' - "$state/code" "$@" </dev/null >>"$log" 2>&1 &
  echo "$!" >"$state/pid"
}

follow() {
  [[ -f "$state/pid" ]] || die "no command was started on this worker"
  if flock --nonblock "$state/lock" true; then
    tail -n 1000 "$state/log"
  else
    tail -n 1000 --pid="$(<"$state/pid")" -F "$state/log"
  fi
  [[ ! -f "$state/code" ]] || exit "$(<"$state/code")"
  echo "the command left no exit code: it was killed" >&2
  exit 137 # as of SIGKILL
}

case "${1:-}" in
  install | start | follow) "$@" ;;
  *) usage && exit 2 ;;
esac
