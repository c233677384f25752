"""Accuracy and recall against definitions written out with sorting and loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclip.evals.metrics import classification_metrics, label_ranks, recall_at, retrieval_ranks


def order_with_right_answers_last_among_equals(scores, right):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i in right))


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 12))
def test_ranks_and_accuracy_follow_a_sort(seed, count, classes):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 3, (count, classes)).astype(np.float32)  # many ties
    labels = rng.integers(0, classes, count)
    orders = [
        order_with_right_answers_last_among_equals(row, {label})
        for row, label in zip(scores, labels, strict=True)
    ]
    ranks = label_ranks(scores, labels)
    assert ranks.tolist() == [o.index(label) for o, label in zip(orders, labels, strict=True)]
    metrics = classification_metrics(ranks, labels)
    top1 = [o[0] == label for o, label in zip(orders, labels, strict=True)]
    top5 = [label in o[:5] for o, label in zip(orders, labels, strict=True)]
    by_class = {}
    for label, right in zip(labels, top1, strict=True):
        by_class.setdefault(label, []).append(right)
    assert metrics["top1"] == pytest.approx(np.mean(top1))
    assert metrics["top5"] == pytest.approx(np.mean(top5))
    expected = np.mean([np.mean(rights) for rights in by_class.values()])
    assert metrics["mean_per_class"] == pytest.approx(expected)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 15), st.integers(1, 5))
def test_retrieval_ranks_follow_a_sort_whatever_the_chunk(seed, queries, gallery, chunk):
    rng = np.random.default_rng(seed)
    # Small integers: exact scores, with ties.
    q = rng.integers(-2, 3, (queries, 3)).astype(np.float32)
    g = rng.integers(-2, 3, (gallery, 3)).astype(np.float32)
    positives = [
        rng.choice(gallery, rng.integers(1, gallery + 1), replace=False) for _ in range(queries)
    ]
    expected = []
    for row, right in zip(q @ g.T, positives, strict=True):
        order = order_with_right_answers_last_among_equals(row, set(right.tolist()))
        expected.append(next(i for i, item in enumerate(order) if item in right))
    assert retrieval_ranks(q, g, positives, chunk).tolist() == expected


def test_a_model_that_tells_nothing_apart_scores_zero():
    ranks = label_ranks(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0]))
    assert classification_metrics(ranks, np.array([0, 1, 2, 0]))["top1"] == 0
    same = np.ones((4, 2), np.float32)
    assert recall_at(retrieval_ranks(same, same, [np.array([i]) for i in range(4)]), 1) == 0


def test_recall_counts_the_first_k():
    assert [recall_at(np.array([0, 1, 4, 9]), k) for k in (1, 5, 10)] == [0.25, 0.75, 1.0]
