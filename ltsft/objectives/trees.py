"""Dependency trees from scores: the maximum spanning tree with one root (Chu and Liu 1965, Edmonds 1967)."""

from __future__ import annotations

from typing import Any

import numpy as np

Scores = np.ndarray[Any, np.dtype[np.float64]]
Heads = np.ndarray[Any, np.dtype[np.int64]]


def best_tree(scores: np.ndarray[Any, np.dtype[Any]]) -> list[int]:
    """Find the heads of the tree with the highest sum of scores that has exactly one root.

    One root is what Universal Dependencies asks for. It is got by taking so much from the score of every root that no
    tree with two can win; all other differences stay what they were. Of equal trees the one found is always the same.

    Args:
        scores: shape (words, words + 1): row i, column j is the score of j as the head of word i + 1, column 0 that of
            being the root. Finite.

    Returns:
        For each word the number of its head, from 1; 0 for the root.

    Example:
        >>> best_tree(np.array([[5.0, 0.0, 9.0], [4.0, 9.0, 0.0]]))  # each would have the other
        [0, 1]
    """
    words = len(scores)
    if words == 0:
        return []
    full = np.full((words + 1, words + 1), -np.inf)  # row: the word, column: its head
    full[1:] = scores
    np.fill_diagonal(full, -np.inf)
    finite = full[np.isfinite(full)]
    full[1:, 0] -= (words + 1) * (float(finite.max() - finite.min()) + 1.0)
    heads = full.argmax(axis=1)
    if _cycle(heads) is not None:
        heads = _spanning_tree(full)
    return [int(head) for head in heads[1:]]


def _spanning_tree(scores: Scores) -> Heads:
    """Give the head of each node; node 0 is the root of all. Contracts a cycle, solves the rest and opens the cycle."""
    heads: Heads = scores.argmax(axis=1)
    heads[0] = 0
    cycle = _cycle(heads)
    if cycle is None:
        return heads
    inside = np.array(cycle)
    outside = np.array([node for node in range(len(scores)) if node not in set(cycle)])
    kept = scores[inside, heads[inside]]
    # the cycle becomes the last node of a smaller graph
    smaller = np.full((len(outside) + 1, len(outside) + 1), -np.inf)
    smaller[:-1, :-1] = scores[np.ix_(outside, outside)]
    smaller[:-1, -1] = scores[np.ix_(outside, inside)].max(axis=1)
    entering = scores[np.ix_(inside, outside)] - kept[:, None]  # what it costs to break the cycle there
    smaller[-1, :-1] = entering.max(axis=0)
    found = _spanning_tree(smaller)
    last = len(outside)
    for place, node in enumerate(outside):
        if node:
            head = found[place]
            heads[node] = outside[head] if head != last else inside[scores[node, inside].argmax()]
    entry = found[last]
    opened = inside[entering[:, entry].argmax()]
    heads[opened] = outside[entry]
    return heads


def _cycle(heads: Heads) -> list[int] | None:
    """Give the nodes of a cycle, or None where the heads form a tree over node 0."""
    state = [0] * len(heads)  # 1 on the path that is walked, 2 known to lead to the root
    state[0] = 2
    for start in range(1, len(heads)):
        path = []
        node = start
        while state[node] == 0:
            state[node] = 1
            path.append(node)
            node = int(heads[node])
        if state[node] == 1:
            return path[path.index(node) :]
        for done in path:
            state[done] = 2
    return None
