# shellcheck shell=bash
# Sourced by tpu_vm.sh, gke.sh, slurm.sh and worker.sh: flags, quoting and --dry-run.
#
# A launcher is called as `launch/LAUNCHER.sh SUBCOMMAND --name=NAME [--FLAG=VALUE ...] [-- COMMAND]`.
# With --dry-run it prints what would run, a command a line, quoted for a shell, and runs nothing.

shopt -s extglob
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
subcommand=""
name=""
dry_run=""
flags=()   # all others
command=() # what stands behind --

die() {
  printf '%s: error: %s\n' "$(basename "$0" .sh)" "$*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "needs bash 4.4 or newer"

# Joins arguments into a line that a shell splits into the same arguments.
quote() {
  local argument line=()
  for argument in "$@"; do
    [[ "$argument" =~ ^[a-zA-Z0-9_./:=,@%+-]+$ ]] || argument="${argument@Q}"
    line+=("$argument")
  done
  printf '%s\n' "${line[*]}"
}

run() {
  if [[ -n "$dry_run" ]]; then
    quote "$@"
  else
    quote "$@" >&2
    "$@"
  fi
}

# The comment at the top of the script is its manual.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# parse "SUBCOMMANDS" ARGUMENTS...: fills the variables above. train and resume take a command.
parse() {
  local argument
  subcommand="${2:-}"
  if [[ "$subcommand" == @(-h|--help) ]]; then usage && exit; fi
  [[ -n "$subcommand" && " $1 " == *" $subcommand "* ]] ||
    die "unknown subcommand '$subcommand'; there are: $1"
  shift 2
  while (($#)); do
    case "$1" in
      --) command=("${@:2}") && break ;;
      --name=*) name="${1#*=}" ;;
      --dry-run) dry_run=yes ;;
      --*) flags+=("$1") ;;
      *) die "unexpected argument ${1@Q}: flags are written --flag=value, a command follows --" ;;
    esac
    shift
  done
  if [[ "$subcommand" != @(train|resume) ]]; then
    ((${#command[@]} == 0)) || die "$subcommand takes no command"
    return
  fi
  ((${#command[@]})) || die "no command: give it behind --, as in: -- python -m launch.train ..."
  for argument in "${command[@]}"; do
    [[ "$argument" != --workdir=* || "$argument" == --workdir=/* ]] ||
      die "$argument: give an absolute path, in a folder that all workers share"
  done
}

need_name() {
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name='$name': give up to 40 of a-z, 0-9 and -, beginning with a letter"
}

# Prints the value that the flags give --$1, or $2; it is an error if there is neither.
value_of() {
  local flag value="${2-}"
  for flag in "${flags[@]}"; do
    [[ "$flag" != "--$1="* ]] || value="${flag#*=}"
  done
  [[ -n "$value" || $# == 2 ]] || die "--$1=... is missing"
  printf '%s\n' "$value"
}

# Sets `bucket` to the value of --bucket, or to nothing.
read_bucket() {
  bucket="$(value_of bucket "")"
  [[ "$bucket" =~ ^[a-z0-9._-]*$ ]] || die "--bucket=$bucket: give the name of a bucket"
}

# Packs what tclip needs to run elsewhere into dist/tclip.tgz.
pack() {
  cd "$root" || exit
  run mkdir -p dist
  run tar -czf dist/tclip.tgz --exclude=__pycache__ \
    README.md LICENSE pyproject.toml requirements.txt Dockerfile configs launch tclip
}
