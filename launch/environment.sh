# Sourced by the other scripts: makes .venv next to the README (once), and puts it on PATH.
#
# TCLIP_EXTRAS names the optional dependencies to install, for instance "test" or "tpu,test".
# PYTHON names the interpreter that makes the environment.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "tclip needs Python 3.11, 3.12 or 3.13 with the venv module; set PYTHON to one" >&2
  return 1
}

if [[ ! -x .venv/bin/python ]]; then
  python="$(find_python)"
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

# Installs again only when what is asked for changed.
wanted="$(cat pyproject.toml requirements.txt) ${TCLIP_EXTRAS:-}"
if [[ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]]; then
  echo "installing tclip${TCLIP_EXTRAS:+[$TCLIP_EXTRAS]} into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${TCLIP_EXTRAS:+[$TCLIP_EXTRAS]}"
  echo "$wanted" >.venv/installed
fi
export PATH="$root/.venv/bin:$PATH"
