#!/usr/bin/env bash
# From a bare Python to an answer: prepares the shapes dataset, trains a float teacher, distils a
# ternary student from it, packs the student, reports, and asks the packed model about an image.
#
#   launch/quickstart.sh [DIR]      results in DIR (runs/quickstart); run again, it goes on where it was
set -euo pipefail
case "${1:-}" in -*)
  echo "usage: launch/quickstart.sh [DIR]" >&2
  exit 2
  ;;
esac
out="$(realpath -m "${1:-runs/quickstart}")"
export TCLIP_EXTRAS="${TCLIP_EXTRAS:-train,report}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

step() { printf '\n== %s\n' "$*"; }

step "float teacher"
python -m launch.train --config=configs/shapes.py:teacher --workdir="$out/teacher"

step "ternary student, distilled from it"
python -m launch.train --config=configs/shapes.py:student --workdir="$out/student" \
  --config.teacher.path="$out/teacher"

step "packed model"
python -m launch.export --workdir="$out/student" --out="$out/packed"

step "report"
python -m launch.report --teacher="$out/teacher" --student="$out/student" \
  --packed="$out/packed" --out="$out"

step "zero-shot answer of the packed model"
python -m launch.classify --model="$out/packed" "$out"/examples/*.png \
  --labels="$(cat "$out/examples/labels.txt")"
