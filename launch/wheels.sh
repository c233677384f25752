#!/usr/bin/env bash
# Builds the wheels of a release for Linux, x86-64 and aarch64, from any machine that PyPI has
# ziglang for:
#   launch/wheels.sh dist
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:?usage: launch/wheels.sh FOLDER}"
python="${PYTHON:-python}"

for machine in x86_64 aarch64; do
  # manylinux_2_17 promises that the engine needs nothing newer than glibc 2.17.
  CC="$python -m ziglang cc -target $machine-linux-gnu.2.17" \
    _PYTHON_HOST_PLATFORM="linux-$machine" \
    "$python" -m build --wheel --no-isolation --outdir="$out" . \
    -Ccmake.define.CMAKE_SYSTEM_NAME=Linux \
    -Ccmake.define.CMAKE_SYSTEM_PROCESSOR="$machine"
  wheel="$(ls "$out"/*-linux_"$machine".whl)"
  "$python" -m wheel tags --remove --platform-tag="manylinux_2_17_$machine.manylinux2014_$machine" "$wheel"
done
