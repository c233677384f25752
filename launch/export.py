"""Packs a trained model into the folder that ships.

python -m launch.export --workdir=DIR --out=DIR
python -m launch.export --workdir=FLOAT --out=DIR --policy=all --estimator=optimal   # post-training
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch.cli import run
from tclip.export import export_packed
from tclip.quant import ESTIMATORS, TernaryPolicy
from tclip.tables import markdown_table, megabytes, percent

_WORKDIR = flags.DEFINE_string("workdir", None, "Training workdir.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_FORMAT = flags.DEFINE_enum("format", "packed", ["packed"], "Kind of folder.")
_FLOAT_DTYPE = flags.DEFINE_enum(
    "float_dtype", "float16", ["float16", "float32"], "Of scales and of what is not ternary."
)
_POLICY = flags.DEFINE_string("policy", None, "What of a float run becomes ternary.")
_ESTIMATOR = flags.DEFINE_enum(
    "estimator", "optimal", list(ESTIMATORS), "Of scale and threshold, with --policy."
)
_GROUP = flags.DEFINE_string("group", "channel", "What shares a scale, with --policy.")


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    policy = None
    if _POLICY.value is not None:
        policy = TernaryPolicy(policy=_POLICY.value, group=_GROUP.value, estimator=_ESTIMATOR.value)
    sizes = export_packed(_WORKDIR.value, _OUT.value, _FLOAT_DTYPE.value, policy)
    (Path(_OUT.value) / "size.json").write_text(json.dumps(sizes, indent=1) + "\n")
    rows = [
        ("size on disk", megabytes(sizes["size_bytes"])),
        ("parameters", f"{sizes['parameters']:,}"),
        ("smaller than float32", f"{sizes['compression_ratio']:.2f}x"),
        ("bits per ternary weight", f"{sizes['bits_per_ternary_weight']:.3f}"),
        ("ternary parameters", percent(sizes["ternary_fraction"])),
        ("zeros among them", percent(sizes["sparsity"])),
    ]
    print(markdown_table(("packed model", _OUT.value), rows))


if __name__ == "__main__":
    run(main)
