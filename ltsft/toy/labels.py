"""Gold labels of artificial sentences beyond their trees: entities, entailment, and questions with their answers.

All of it follows from the abstract sentence and so means the same in every language of the family.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence

from ltsft.toy.grammar import Node, ToyLanguage, ToyWord, plain_text, say

ENTITIES = ("NAME", "THING")
ENTAILMENT = ("entailment", "neutral", "contradiction")
SENTENCES_IN_CONTEXT = 3
_THING_EVERY = 3  # every third noun is a THING, with what belongs to it
_INSIDE = ("det", "amod", "nummod")
_DROPPED = ("amod", "nmod", "nummod", "obl", "advmod", "conj", "advcl")
_NEGATION = "advmod:neg"


def entity_labels(words: Sequence[ToyWord], language: ToyLanguage) -> list[str]:
    """Label the words in BIO: a name is a NAME; some nouns, with what belongs to them, are THINGs."""
    concepts = {stem: key for key, stem in language.stems.items()}
    labels = ["O"] * len(words)
    for place, word in enumerate(words, start=1):
        if word.upos == "PROPN":
            labels[place - 1] = "B-NAME"
        elif word.upos == "NOUN" and concepts[word.lemma][1] % _THING_EVERY == 0:
            inside = [i for i, other in enumerate(words, 1) if other.head == place and other.deprel in _INSIDE]
            first, last = min([place, *inside]), max([place, *inside])
            labels[first - 1 : last] = ["B-THING", *["I-THING"] * (last - first)]
    return labels


def conll(words: Sequence[ToyWord], language: ToyLanguage) -> str:
    """Return the sentence with its entities as a block of two columns, closed by an empty line."""
    lines = [f"{w.form} {label}\n" for w, label in zip(words, entity_labels(words, language), strict=True)]
    return "".join([*lines, "\n"])


def hypothesis(premise: Node, label: str, language: ToyLanguage, rng: random.Random) -> Node:
    """Make a sentence that stands in a relation to another.

    What is entailed says less: modifiers and further clauses are left out. A contradiction is that with its negation
    added or taken away, and what is neutral is about somebody else.

    Args:
        premise: root of an abstract sentence; it is not changed.
        label: one of `ENTAILMENT`.
        language: says how many concepts there are.
        rng: settles what is left to chance.

    Returns:
        Root of the hypothesis.
    """
    root = copy.deepcopy(premise)
    _drop_modifiers(root)
    if label == "contradiction":
        negations = [child for child in root.children if child.deprel == _NEGATION]
        if negations:
            root.children.remove(negations[0])
        else:
            root.children.append(Node("PART", 0, _NEGATION))
    elif label == "neutral":
        subject = next(child for child in root.children if child.deprel == "nsubj")
        count = sum(upos == subject.upos for upos, _ in language.stems)
        others = [c for c in range(subject.concept % 2, count, 2) if c != subject.concept]  # of the same noun class
        subject.concept = rng.choice(others)
    return root


def _drop_modifiers(node: Node) -> None:
    node.children = [child for child in node.children if child.deprel not in _DROPPED]
    for child in node.children:
        _drop_modifiers(child)


def entailment_pairs(
    sentences: Sequence[Node], language: ToyLanguage, rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Yield a pair for each sentence: premise, hypothesis and label; the labels take turns."""
    for i, premise in enumerate(sentences):
        label = ENTAILMENT[i % len(ENTAILMENT)]
        other = hypothesis(premise, label, language, rng)
        yield plain_text(say(premise, language)), plain_text(say(other, language)), label


def questions(sentences: Sequence[Sequence[ToyWord]]) -> Iterator[str]:
    """Yield questions as lines of JSON in SQuAD's fields: who is it that a sentence of the context is about?

    A question is the sentence without its subject; the answer is the subject with all that belongs to it.
    """
    for start in range(0, len(sentences) - SENTENCES_IN_CONTEXT + 1, SENTENCES_IN_CONTEXT):
        context = sentences[start : start + SENTENCES_IN_CONTEXT]
        number = start // SENTENCES_IN_CONTEXT % SENTENCES_IN_CONTEXT
        asked, texts = context[number], [plain_text(words) for words in context]
        first, last = _subject(asked)
        rest = [*asked[:first], *asked[last:-1], ToyWord("?", "?", "PUNCT", "_", 0, "punct")]
        before = sum(len(text) + 1 for text in texts[:number])
        answer_start = before + len(plain_text([*asked[:first], asked[first]])) - len(asked[first].form)
        answers = {"text": [plain_text(asked[first:last])], "answer_start": [answer_start]}
        record = {"question": plain_text(rest), "context": " ".join(texts), "answers": answers}
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _subject(words: Sequence[ToyWord]) -> tuple[int, int]:
    """Give where the subject of the main clause begins and ends; what depends on a word stands next to it."""
    root = next(i for i, word in enumerate(words, 1) if word.head == 0)
    inside = {next(i for i, word in enumerate(words, 1) if word.head == root and word.deprel == "nsubj")}
    while more := {i for i, word in enumerate(words, 1) if word.head in inside} - inside:
        inside |= more
    return min(inside) - 1, max(inside)
