"""Accuracy and recall from scores.

Equal scores are ordered in one of two ways. "against": the right answer takes the last place among
them, so that a model which tells nothing apart scores zero and not one. "stable": by position, as
in a stable sort, which is what argmax does and how published figures are computed.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Ties = Literal["against", "stable"]


def label_ranks(scores_NxC: np.ndarray, labels_N: np.ndarray, ties: Ties = "against") -> np.ndarray:
    """Place of the right class, int64 [N]: 0 when its score is above all the others."""
    labels_Nx1 = labels_N[:, None].astype(np.int64)
    right_Nx1 = np.take_along_axis(scores_NxC, labels_Nx1, axis=1)
    classes_C = np.arange(scores_NxC.shape[1])
    earlier_NxC = classes_C < labels_Nx1 if ties == "stable" else classes_C != labels_Nx1
    equal_NxC = scores_NxC == right_Nx1
    return ((scores_NxC > right_Nx1) | (equal_NxC & earlier_NxC)).sum(axis=1)


def classification_metrics(ranks_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """top1, top5, and mean_per_class: top1 averaged over the classes that occur."""
    right_N = ranks_N == 0
    per_class = [right_N[labels_N == label].mean() for label in np.unique(labels_N)]
    return {
        "top1": float(right_N.mean()),
        "top5": float((ranks_N < 5).mean()),
        "mean_per_class": float(np.mean(per_class)),
    }


def average_precision(scores_NxC: np.ndarray, targets_NxC: np.ndarray) -> np.ndarray:
    """Average precision of every class, float64 [C]; zero for a class that no image shows.

    The area under the steps of precision over recall, without interpolation: the mean, over the
    images that show the class, of the precision among the images scored no lower. Equal scores are
    ordered by position.

    Args:
      scores_NxC: of each image for each class.
      targets_NxC: bool or 0 and 1, whether the image shows the class.
    """
    order_NxC = np.argsort(-scores_NxC, axis=0, kind="stable")
    shown_NxC = np.take_along_axis(np.asarray(targets_NxC, bool), order_NxC, axis=0)
    precision_NxC = np.cumsum(shown_NxC, axis=0) / np.arange(1, len(shown_NxC) + 1)[:, None]
    return (precision_NxC * shown_NxC).sum(axis=0) / np.maximum(shown_NxC.sum(axis=0), 1)


def retrieval_ranks(
    queries_QxD: np.ndarray,
    gallery_GxD: np.ndarray,
    positives: Sequence[np.ndarray],
    chunk: int = 1024,
    ties: Ties = "against",
) -> np.ndarray:
    """Wrong answers placed before the best right one, for each query: int64 [Q].

    Args:
      queries_QxD: unit embeddings, float32.
      gallery_GxD: unit embeddings, float32.
      positives: for each query the positions in the gallery that are right, at least one.
      chunk: queries scored at a time; the scores in memory are [chunk, G].
    """
    ranks = []
    for start in range(0, len(queries_QxD), chunk):
        scores_QxG = queries_QxD[start : start + chunk] @ gallery_GxD.T
        for scores_G, right in zip(scores_QxG, positives[start : start + chunk], strict=True):
            best = scores_G[right].max()
            if ties == "stable":
                first = right[scores_G[right] == best].min()
                equal = (scores_G[:first] == best).sum()
            else:
                equal = (scores_G == best).sum() - (scores_G[right] == best).sum()
            ranks.append((scores_G > best).sum() + equal)
    return np.asarray(ranks)


def recall_at(ranks_Q: np.ndarray, k: int) -> float:
    """Share of the queries with a right answer among the first k."""
    return float((ranks_Q < k).mean())
