"""Accuracy and recall from scores.

Ties count against the model: the right answer takes the last place among equal scores, so that a
model which tells nothing apart scores zero and not one.
"""

from collections.abc import Sequence

import numpy as np


def label_ranks(scores_NxC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Place of the right class, int64 [N]: 0 when its score is above all the others."""
    right_Nx1 = np.take_along_axis(scores_NxC, labels_N[:, None].astype(np.int64), axis=1)
    return (scores_NxC >= right_Nx1).sum(axis=1) - 1


def classification_metrics(ranks_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """top1, top5, and mean_per_class: top1 averaged over the classes that occur."""
    right_N = ranks_N == 0
    per_class = [right_N[labels_N == label].mean() for label in np.unique(labels_N)]
    return {
        "top1": float(right_N.mean()),
        "top5": float((ranks_N < 5).mean()),
        "mean_per_class": float(np.mean(per_class)),
    }


def retrieval_ranks(
    queries_QxD: np.ndarray,
    gallery_GxD: np.ndarray,
    positives: Sequence[np.ndarray],
    chunk: int = 1024,
) -> np.ndarray:
    """Wrong answers scored no lower than the best right one, for each query: int64 [Q].

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
            ranks.append((scores_G >= best).sum() - (scores_G[right] >= best).sum())
    return np.asarray(ranks)


def recall_at(ranks_Q: np.ndarray, k: int) -> float:
    """Share of the queries with a right answer among the first k."""
    return float((ranks_Q < k).mean())
