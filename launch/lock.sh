#!/usr/bin/env bash
# Writes constraints.txt: the versions of everything that CI installs, from a new environment in
# which the newest ones were installed. Run it again to take newer releases; CI uses the file as
# PIP_CONSTRAINT, so that a release of a dependency cannot break it unseen.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment="$(mktemp -d)"
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install --quiet -e ".[test,reference,tpu,wheels]"
# torch comes from wherever its build for CPUs is, and is pinned by the extra `reference`.
"$environment/bin/pip" list --format=freeze --exclude-editable \
  | grep -vE '^(pip|setuptools|torch|nvidia-[a-z0-9-]+|cuda-[a-z]+|triton)==' >constraints.txt
