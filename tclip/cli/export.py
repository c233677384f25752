"""Writes a trained model as the folder that ships, packed or for transformers (hf).

tclip export --workdir=DIR --out=DIR
tclip export --workdir=FLOAT --out=DIR --policy=blocks+proj      # a float model, without training
tclip export --workdir=DIR --out=DIR --format=hf                 # for transformers
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from tclip.export import export_huggingface, export_packed
from tclip.models import ClipPolicy
from tclip.quant import ESTIMATORS
from tclip.tables import markdown_table, megabytes, percent

FORMATS = {"packed": export_packed, "hf": export_huggingface}
ROWS = (
    ("size on disk", "size_bytes", megabytes),
    ("parameters", "parameters", "{:,}".format),
    ("smaller than float32", "compression_ratio", "{:.2f}x".format),
    ("bits per ternary weight", "bits_per_ternary_weight", "{:.3f}".format),
    ("ternary parameters", "ternary_fraction", percent),
    ("zeros among them", "sparsity", percent),
    ("stored as", "float_dtype", str),
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Training run, or any float CLIP.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_FORMAT = flags.DEFINE_enum("format", "packed", list(FORMATS), "Kind of folder.")
_FLOAT_DTYPE = flags.DEFINE_enum(
    "float_dtype",
    None,
    ["float16", "bfloat16", "float32"],
    "packed: of scales and of what is not ternary. hf: of all weights; float32 by default if none "
    "is ternary. float16 by default.",
)
_STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: last, best or a step.")
_POLICY = flags.DEFINE_string("policy", None, "What of a float model becomes ternary.")
_ESTIMATOR = flags.DEFINE_enum(
    "estimator", "optimal", list(ESTIMATORS), "Of scale and threshold, with --policy."
)
_GROUP = flags.DEFINE_string("group", "channel", "What shares a scale, with --policy.")


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    options: dict[str, Any] = {"step": _STEP.value}
    if _FLOAT_DTYPE.value is not None:
        options["float_dtype"] = _FLOAT_DTYPE.value
    if _POLICY.value is not None:
        options["policy"] = ClipPolicy(_POLICY.value, _GROUP.value, _ESTIMATOR.value)
    sizes = FORMATS[_FORMAT.value](_WORKDIR.value, _OUT.value, **options)
    (Path(_OUT.value) / "size.json").write_text(json.dumps(sizes, indent=1) + "\n")
    rows = [(label, show(sizes[key])) for label, key, show in ROWS if key in sizes]
    print(markdown_table((f"{_FORMAT.value} model", _OUT.value), rows))
    if _POLICY.value is not None and not flags.FLAGS["estimator"].present:
        print(
            f"\nScales and thresholds are those of --estimator={_ESTIMATOR.value}, which has the "
            f"smallest squared error of the weights; there are {', '.join(ESTIMATORS)}"
        )
