# shellcheck shell=bash
# Sourced by the other scripts: makes .venv next to the README (once), and puts it on PATH.
#
# TCLIP_EXTRAS names the optional dependencies to install, for instance "test" or "tpu,test".
# PYTHON names the interpreter that makes the environment.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv, ensurepip
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "tclip needs Python 3.11, 3.12 or 3.13 with the venv module; set PYTHON to one" >&2
  return 1
}

if [[ ! -x .venv/bin/pip ]]; then
  python="$(find_python)"
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

# .venv/installed-EXTRAS holds the requirements that were installed with these extras.
extras="${TCLIP_EXTRAS:-}"
requirements="$(cat pyproject.toml requirements.txt)"

is_installed() {
  local mark
  # Without extras any of the files will do.
  for mark in .venv/installed-*"$extras"; do
    if [[ -f "$mark" && "$(<"$mark")" == "$requirements" ]]; then return 0; fi
  done
  return 1
}

if ! is_installed; then
  echo "installing tclip${extras:+[$extras]} into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
  echo "$requirements" >".venv/installed-$extras"
fi
export PATH="$root/.venv/bin:$PATH"
