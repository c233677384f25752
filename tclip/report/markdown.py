"""report.md: the tables and pictures with what they mean."""

from collections.abc import Mapping
from typing import Any

from tclip.quant import TernaryPolicy
from tclip.report.plots import NAMES
from tclip.tables import markdown_table, megabytes, percent

_METRICS = {
    "zeroshot_top1": "zero-shot top-1",
    "zeroshot_top5": "zero-shot top-5",
    "zeroshot_mean_per_class": "zero-shot mean per class",
    "zeroshot_top1_unseen": "zero-shot top-1, unseen pairs",
    "retrieval_i2t_r1": "image to text, recall@1",
    "retrieval_i2t_r5": "image to text, recall@5",
    "retrieval_i2t_r10": "image to text, recall@10",
    "retrieval_t2i_r1": "text to image, recall@1",
    "retrieval_t2i_r5": "text to image, recall@5",
    "retrieval_t2i_r10": "text to image, recall@10",
}


def comparison_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics and size of the three models side by side."""
    columns = list(NAMES)
    rows = [
        (text, *(percent(results[name][key]) for name in columns))
        for key, text in _METRICS.items()
        if results["student"].get(key) is not None
    ]
    rows.append(("size", *(megabytes(results[name]["size_bytes"]) for name in columns)))
    return markdown_table(("", *NAMES.values()), rows)


def render(
    results: Mapping[str, Mapping[str, Any]],
    source: str,
    policy: TernaryPolicy,
    pictures: Mapping[str, str],
) -> str:
    """The text of report.md.

    Args:
      results: see `tclip.report.results.collect`.
      source: what the models were evaluated on.
      policy: of the student, and of the teacher after training.
      pictures: file name to caption.
    """
    student, post = results["student"], results["post_training"]
    sizes = markdown_table(
        ("ternary student", ""),
        [
            ("size on disk, tokenizer and config included", megabytes(student["size_bytes"])),
            ("smaller than the float32 weights", f"{student['compression_ratio']:.2f}x"),
            (
                "bits per ternary weight, scales included",
                f"{student['bits_per_ternary_weight']:.3f}",
            ),
            ("share of the parameters that is ternary", percent(student["ternary_fraction"])),
            ("zeros among the ternary weights", percent(student["sparsity"])),
        ],
    )
    estimators = markdown_table(
        ("estimator", "zero-shot top-1"),
        [(name, percent(top1)) for name, top1 in post["zeroshot_top1_by_estimator"].items()],
    )
    images = "\n\n".join(f"![{text}]({file})" for file, text in pictures.items())
    skipped = f" {student['skipped']:,} samples could not be used." if student["skipped"] else ""
    return f"""# Float teacher, post-training ternarisation, ternary student

Evaluated on {source}: {student["zeroshot_n"]:,} labelled images.{skipped} The student's numbers are
those of the packed folder. Policy `{policy.policy}` says which weights are ternary.

{comparison_table(results)}

## Size

{sizes}

## Post-training ternarisation

The teacher's weights made ternary without training, in the groups of the student
(`{policy.group}`). The table above has the best estimator, `{post["estimator"]}`.

{estimators}

## Pictures

{images}
"""
