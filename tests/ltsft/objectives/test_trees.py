"""The best tree with one root, against every tree there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ltsft.objectives.trees import best_tree


def is_tree(heads: tuple[int, ...]) -> bool:
    if heads.count(0) != 1:
        return False
    for word in range(1, len(heads) + 1):
        seen = set()
        while word:
            if word in seen:
                return False
            seen.add(word)
            word = heads[word - 1]
    return True


def total(scores: np.ndarray, heads: tuple[int, ...] | list[int]) -> float:
    return float(sum(scores[i, head] for i, head in enumerate(heads)))


def by_trying_all(scores: np.ndarray) -> float:
    words = len(scores)
    return max(total(scores, heads) for heads in product(range(words + 1), repeat=words) if is_tree(heads))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: arrays(np.int64, (n, n + 1), elements=st.integers(-9, 9))))
def test_no_tree_with_one_root_is_better(scores: np.ndarray) -> None:
    heads = best_tree(scores.astype(float))
    assert is_tree(tuple(heads))
    assert total(scores, heads) == by_trying_all(scores)


@pytest.mark.parametrize("seed", range(6))
def test_cycles_within_cycles_are_opened(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(5, 6))
    for a, b in ((1, 2), (3, 4), (2, 3)):  # pairs that want each other
        scores[a - 1, b] += 6
        scores[b - 1, a] += 6
    assert total(scores, best_tree(scores)) == pytest.approx(by_trying_all(scores))


def test_of_words_that_would_all_be_the_root_one_is() -> None:
    scores = np.zeros((3, 4))
    scores[:, 0] = [5.0, 7.0, 6.0]
    assert best_tree(scores).count(0) == 1
    assert best_tree(scores)[1] == 0


def test_a_long_sentence_is_a_tree_and_no_sentence_is_none() -> None:
    scores = np.random.default_rng(0).normal(size=(120, 121))
    assert is_tree(tuple(best_tree(scores)))
    assert best_tree(np.zeros((0, 1))) == []
