"""The report's pictures. Every function takes plain values and writes one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws without a display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from PIL import Image

COLOURS = {"teacher": "#3b5b8c", "post_training": "#d08a2e", "student": "#1f8a70"}
NAMES = {
    "teacher": "float teacher",
    "post_training": "post-training ternary",
    "student": "ternary student",
}
INK, FAINT, WRONG = "#2b2b2b", "#e4e4e4", "#c4473a"

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def accuracy_against_size(path: Path, points: Mapping[str, tuple[int, float]]) -> None:
    """Zero-shot top-1 over bytes.

    Args:
      path: the PNG to write.
      points: bytes and top-1 of "teacher", "post_training" and "student".
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.8))
        student_above = points["student"][1] >= points["post_training"][1]
        for name, (size, top1) in points.items():
            axes.plot(size, top1, "o", color=COLOURS[name], ms=11)
            # The two ternary models have one size: their labels lean away from each other.
            upward = student_above == (name == "student")
            axes.annotate(
                f"{NAMES[name]}\n{top1:.1%}, {size / 1e6:.2f} MB",
                (size, top1),
                xytext=(-12, 0) if name == "teacher" else (12, 4 if upward else -4),
                textcoords="offset points",
                ha="right" if name == "teacher" else "left",
                va="center" if name == "teacher" else "bottom" if upward else "top",
                color=COLOURS[name],
            )
        sizes = [size for size, _ in points.values()]
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
        axes.set_ylim(0, 1.18)  # room for the label of a perfect student
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1e6:g}"))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("size on disk in MB (logarithmic)")
        axes.set_title("Zero-shot top-1 against size")
        _save(figure, path)


def training_curves(
    path: Path,
    losses: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    accuracies: Mapping[str, tuple[Sequence[int], Sequence[float]]],
) -> None:
    """Training loss and zero-shot top-1 over steps.

    Args:
      path: the PNG to write.
      losses: for "teacher" and "student", steps and losses.
      accuracies: likewise, steps and top-1 on the evaluation data.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6))
        for name, (steps, values) in losses.items():
            left.plot(steps, values, color=COLOURS[name], lw=1.6, label=NAMES[name])
        for name, (steps, values) in accuracies.items():
            right.plot(steps, values, "o-", color=COLOURS[name], lw=1.6, ms=3.5)
        left.set_title("Training loss (each run its own sum of terms)")
        right.set_title("Zero-shot top-1 during training")
        right.set_ylim(0, 1)
        right.yaxis.set_major_formatter(PercentFormatter(1))
        for axes in (left, right):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlim(left=0)
        left.set_ylim(bottom=0)
        left.legend(loc="upper right")
        _save(figure, path)


def retrieval_grid(
    path: Path, rows: Sequence[tuple[str, Sequence[tuple[Image.Image, bool]]]]
) -> None:
    """The best images for a few captions, the right ones framed.

    Args:
      path: the PNG to write.
      rows: caption, and its images from the best on, each with whether it is right.
    """
    columns = max(len(images) for _, images in rows)
    with plt.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        figure, grid = plt.subplots(
            *(len(rows), columns), figsize=(1.35 * columns, 1.68 * len(rows)), squeeze=False
        )
        figure.subplots_adjust(0.02, 0.02, 0.98, 0.95, wspace=0.08, hspace=0.3)
        for axes_row, (caption, images) in zip(grid, rows, strict=True):
            for axes in axes_row:
                axes.axis("off")
            for axes, (image, right) in zip(axes_row, images, strict=False):
                _framed(axes, image, right)
            axes_row[0].set_title(f"“{caption}”", fontsize=9.5, fontweight="normal", pad=5)
        _save(figure, path)


def weight_histogram(
    path: Path, name: str, weights: np.ndarray, scales: np.ndarray, thresholds: np.ndarray
) -> None:
    """Latent weights of one layer in units of their scale, coloured by the code they become.

    Args:
      path: the PNG to write.
      name: of the layer.
      weights: latent weights of any shape.
      scales: broadcastable to `weights`.
      thresholds: broadcastable to `weights`.
    """
    relative = weights / scales
    border = np.broadcast_to(thresholds / scales, weights.shape)
    edges = np.linspace(-3, 3, 121)
    kinds = (
        ("-1", relative < -border, COLOURS["teacher"]),
        ("0", np.abs(relative) <= border, "#a9a9a9"),
        ("+1", relative > border, COLOURS["student"]),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        axes.hist(
            [np.clip(relative[chosen], -3, 3) for _, chosen, _ in kinds],
            bins=edges.tolist(),
            stacked=True,
            weights=[np.full(chosen.sum(), 1 / relative.size) for _, chosen, _ in kinds],
            color=[colour for _, _, colour in kinds],
            label=[f"code {code}: {chosen.mean():.0%}" for code, chosen, _ in kinds],
        )
        median = float(np.median(border))
        for sign in (-1, 1):
            axes.axvline(sign * median, color=INK, lw=1.2, ls=(0, (4, 3)))
        axes.plot(
            [], [], color=INK, lw=1.2, ls=(0, (4, 3)), label=f"threshold, median ±{median:.2f}"
        )
        top = axes.get_ylim()[1]
        for level, (_, _, colour) in zip((-1, 0, 1), kinds, strict=True):
            axes.plot(level, -0.035 * top, "^", color=colour, ms=9, clip_on=False, zorder=5)
        axes.set_ylim(0, top)
        axes.tick_params(axis="x", pad=9)
        axes.set_xlim(-3, 3)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("latent weight / scale of its channel  (▲ the three ternary levels)")
        axes.set_ylabel("share of the weights")
        axes.set_title(name)
        axes.legend(loc="upper right", fontsize=9)
        _save(figure, path)


def _framed(axes: Axes, image: Image.Image, right: bool) -> None:
    axes.axis("on")
    axes.grid(False)
    axes.imshow(image, interpolation="nearest" if image.width < 128 else "antialiased")
    axes.set(xticks=[], yticks=[])
    colour = COLOURS["student"] if right else FAINT
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=3 if right else 1)
    if right:
        axes.annotate(
            "✓",
            (0.97, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color="white",
            fontsize=9,
            fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
