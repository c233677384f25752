#!/usr/bin/env bash
# Lint, format check, types and the test suite, from a bare Python. Arguments go to pytest:
#   launch/test.sh tests/quant -k packing
#   launch/test.sh -m 'slow or not slow'     also the tests that take more than ten seconds
# With TCLIP_EXTRAS=test,reference also the comparisons with transformers, torch and scikit-learn.
set -euo pipefail
export TCLIP_EXTRAS="${TCLIP_EXTRAS:-test}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ruff check .
ruff format --check .
basedpyright
# A file's tests share what was compiled, and stay together.
exec python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
