"""Grammar of the artificial languages: abstract sentences, and how each language says them.

A sentence is first drawn as a tree of concepts that belongs to no language; this grammar is the same for the whole
family. A language then turns the tree into words: its lexicon gives the stems, its affixes mark number, agreement,
tense and adverbs, and its word order places what depends on a word before or after it. Part-of-speech tags and
dependency relations follow Universal Dependencies (https://universaldependencies.org) and are gold by construction.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from ltsft.errors import ConfigError

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
MARKS = (".", "?", "!", ",")
COMMA = 3
CLOSED_CLASSES: dict[str, int] = {
    "ADP": 6,
    "AUX": 3,
    "CCONJ": 2,
    "DET": 3,
    "NUM": 4,
    "PART": 1,
    "PRON": 5,
    "SCONJ": 3,
}
"""Words of each closed class; the first AUX is the copula."""
AFFIXES = (
    "Plur",  # on nouns
    "Class1.Sing",  # on determiners and adjectives, which agree with the class and the number of their noun
    "Class1.Plur",
    "Class2.Sing",
    "Class2.Plur",
    "Pres",  # on verbs
    "Past",
    "Adv",  # on adverbs
)
ORDERS: dict[str, tuple[str, ...]] = {
    "clause": ("SVO", "SOV", "VSO"),
    "amod": ("before", "after"),
    "det": ("before", "after"),
    "case": ("before", "after"),
    "aux": ("before", "after"),
    "advmod": ("before", "after"),
}
"""What languages order differently, and how."""
_CLAUSES = {
    "SVO": {"nsubj": -30, "obj": 20, "obl": 40},
    "SOV": {"nsubj": -30, "obj": -20, "obl": -25},
    "VSO": {"nsubj": 20, "obj": 30, "obl": 40},
}
_DISTANCES = {"amod": 10, "det": 30, "case": 50, "aux": 4, "advmod": 10}
_SAME_EVERYWHERE = {"cc": -110, "mark": -100, "nummod": -20, "nmod": 40, "advmod:neg": -5, "conj": 80, "advcl": 60}
_FULL_STOP, _SUBORDINATE_COMMA = 120, -120


class ToyWord(NamedTuple):
    """One word of a sentence: a row of a CoNLL-U file."""

    form: str
    lemma: str
    upos: str
    feats: str
    head: int
    deprel: str


@dataclass
class Node:
    """One word of an abstract sentence and what depends on it, in no order yet."""

    upos: str
    concept: int
    deprel: str
    affix: str = ""
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class ToyLanguage:
    """What one artificial language adds to the grammar that all share.

    Attributes:
        code: private-use language code such as "qaa".
        stems: stem of each (part of speech, concept).
        affixes: what each of `AFFIXES` is in this language.
        order: one of the values of each of `ORDERS`.
        cognates: the (part of speech, concept) pairs whose stem is inherited from the proto-language.
    """

    code: str
    stems: Mapping[tuple[str, int], str]
    affixes: Mapping[str, str]
    order: Mapping[str, str]
    cognates: frozenset[tuple[str, int]]

    @cached_property
    def places(self) -> dict[str, int]:
        """Place of a dependant by relation: below zero before its head, above zero after, further out by size."""
        sides = {name: -1 if self.order[name] == "before" else 1 for name in _DISTANCES}
        placed = {name: sides[name] * distance for name, distance in _DISTANCES.items()}
        return {**_SAME_EVERYWHERE, **_CLAUSES[self.order["clause"]], **placed, "cop": placed["aux"]}


@dataclass(frozen=True)
class Shares:
    """How much a language inherits, each a chance in [0, 1].

    Attributes:
        open: a noun, verb, adjective or adverb keeps the stem of the proto-language.
        closed: a function word keeps it.
        affix: an affix keeps it.
    """

    open: float
    closed: float
    affix: float


class _Shapes:
    """Draws strings that nothing in the family is called yet.

    Stems of open classes begin with a consonant, function words with a vowel, and stems of a kind are equally long: the
    longest piece that a tokenizer finds at the start of a form is then always its stem.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"{seed}:shapes")
        self._taken: set[str] = set()

    def draw(self, upos: str) -> str:
        """Draw a new stem of a part of speech, or a new affix for "affix"."""
        pattern = "CVC" if upos == "affix" else "VCVC" if upos in CLOSED_CLASSES else "CVCV"
        for _ in range(10_000):
            stem = "".join(self._rng.choice(CONSONANTS if c == "C" else VOWELS) for c in pattern)
            stem = stem.capitalize() if upos == "PROPN" else stem
            if stem not in self._taken:
                self._taken.add(stem)
                return stem
        raise ConfigError(f"no free {upos} of the shape {pattern} is left: ask for fewer words or fewer languages")


def draw_family(
    codes: Sequence[str], *, seen: int, seed: int, sizes: Mapping[str, int], shares: Shares
) -> dict[str, ToyLanguage]:
    """Draw the languages of a family.

    No string means two things in the family: a stem or an affix that two languages have in common is inherited. Names
    are the same everywhere. The first `seen` languages have, between them, each order that the others have.

    Args:
        codes: codes of the languages.
        seen: how many of them, from the first, the base is to read.
        seed: settles everything.
        sizes: number of concepts of each part of speech.
        shares: how much is inherited.

    Returns:
        The languages by code.

    Raises:
        ConfigError: more words are asked for than there are short strings.
    """
    shapes = _Shapes(seed)
    keys = [(upos, i) for upos in sorted(sizes) for i in range(sizes[upos])]
    proto = {key: shapes.draw(key[0]) for key in keys}
    proto_affixes = {name: shapes.draw("affix") for name in AFFIXES}
    orders = _draw_orders(len(codes), seen=seen, seed=seed)
    family = {}
    for code, order in zip(codes, orders, strict=True):
        rng = random.Random(f"{seed}:{code}")
        kept = _inherited(keys, shares, rng)
        affixes_kept = set(rng.sample(AFFIXES, round(shares.affix * len(AFFIXES))))
        family[code] = ToyLanguage(
            code=code,
            stems={key: proto[key] if key in kept else shapes.draw(key[0]) for key in keys},
            affixes={name: proto_affixes[name] if name in affixes_kept else shapes.draw("affix") for name in AFFIXES},
            order=order,
            cognates=kept,
        )
    return family


def _inherited(keys: Sequence[tuple[str, int]], shares: Shares, rng: random.Random) -> frozenset[tuple[str, int]]:
    """Choose the concepts whose stem is inherited: the share of each part of speech, so that languages are alike."""
    kept: set[tuple[str, int]] = set()
    for upos in sorted({key[0] for key in keys}):
        of_class = [key for key in keys if key[0] == upos]
        share = 1.0 if upos == "PROPN" else shares.closed if upos in CLOSED_CLASSES else shares.open
        kept.update(rng.sample(of_class, round(share * len(of_class))))
    return frozenset(kept)


def _draw_orders(count: int, *, seen: int, seed: int) -> list[dict[str, str]]:
    """Draw the word order of each language.

    The first takes the first value of each trait, the other seen ones share out the rest, and the unseen ones take any
    that a seen one has.
    """
    orders: list[dict[str, str]] = [{} for _ in range(count)]
    for trait, values in ORDERS.items():
        rng = random.Random(f"{seed}:{trait}")
        shuffled = rng.sample(values, len(values))
        shuffled.remove(values[0])
        others = [*shuffled, values[0]]
        rest = [others[i % len(values)] for i in range(seen - 1)]
        rng.shuffle(rest)
        known = [values[0], *rest]
        for i, order in enumerate(orders):
            order[trait] = known[i] if i < seen else rng.choice(known)
    return orders


class Grammar:
    """The grammar that all languages of the family share: draws abstract sentences.

    Nouns have one of two classes, by concept; determiners and adjectives agree with it and with the number. Of the
    verbs every other one takes an object.

    Args:
        sizes: number of concepts of each part of speech.
        exponent: exponent of Zipf's law, by which the concepts of a part of speech are drawn.
    """

    def __init__(self, sizes: Mapping[str, int], *, exponent: float) -> None:
        self._weights = {
            upos: list(accumulate(1 / (i + 2) ** exponent for i in range(size))) for upos, size in sizes.items()
        }

    def sentence(self, rng: random.Random) -> Node:
        """Draw an abstract sentence: one or two clauses with a full stop, a question mark or an exclamation mark."""
        root = self._clause(rng, "root")
        if rng.random() < 0.2:
            relation, link, upos = rng.choice((("advcl", "mark", "SCONJ"), ("conj", "cc", "CCONJ")))
            clause = self._clause(rng, relation, short=True)
            clause.children.append(self._node(rng, upos, link))
            if relation == "advcl":
                clause.children.append(Node("PUNCT", COMMA, "punct"))
            root.children.append(clause)
        root.children.append(Node("PUNCT", rng.choices((0, 1, 2), (8, 1, 1))[0], "punct"))
        return root

    def _node(self, rng: random.Random, upos: str, deprel: str, affix: str = "") -> Node:
        weights = self._weights[upos]
        return Node(upos, rng.choices(range(len(weights)), cum_weights=weights)[0], deprel, affix)

    def _clause(self, rng: random.Random, deprel: str, *, short: bool = False) -> Node:
        subject, agreement = self._nominal(rng, "nsubj")
        if rng.random() < 0.15:
            head = self._node(rng, "ADJ", deprel, agreement)
            head.children = [subject, Node("AUX", 0, "cop")]
            return head
        head = self._node(rng, "VERB", deprel, rng.choice(("Pres", "Past")))
        head.children = [subject]
        if head.concept % 2 == 0:
            head.children.append(self._nominal(rng, "obj")[0])
        if rng.random() < 0.3:
            auxiliaries = len(self._weights["AUX"])
            head.children.append(Node("AUX", rng.randrange(1, auxiliaries), "aux"))
        if rng.random() < 0.1:
            head.children.append(self._node(rng, "PART", "advmod:neg"))
        if rng.random() < 0.35:
            head.children.append(self._node(rng, "ADV", "advmod", "Adv"))
        if not short and rng.random() < 0.35:
            head.children.append(self._adpositional(rng, "obl"))
        return head

    def _adpositional(self, rng: random.Random, deprel: str) -> Node:
        nominal, _ = self._nominal(rng, deprel, plain=True)
        nominal.children.append(self._node(rng, "ADP", "case"))
        return nominal

    def _nominal(self, rng: random.Random, deprel: str, *, plain: bool = False) -> tuple[Node, str]:
        """Draw a pronoun, a name or a noun phrase; give it with the affix of what agrees with it."""
        kind = rng.random()
        if kind < 0.22:
            return self._node(rng, "PRON" if kind < 0.12 else "PROPN", deprel), "Class1.Sing"
        is_plural = rng.random() < 0.35
        noun = self._node(rng, "NOUN", deprel, "Plur" if is_plural else "")
        agreement = f"Class{noun.concept % 2 + 1}.{'Plur' if is_plural else 'Sing'}"
        if rng.random() < 0.7:
            noun.children.append(self._node(rng, "DET", "det", agreement))
        if is_plural and rng.random() < 0.3:
            noun.children.append(self._node(rng, "NUM", "nummod"))
        if rng.random() < 0.4:
            noun.children.append(self._node(rng, "ADJ", "amod", agreement))
        if not plain and rng.random() < 0.1:
            noun.children.append(self._adpositional(rng, "nmod"))
        return noun, agreement


def say(sentence: Node, language: ToyLanguage) -> tuple[ToyWord, ...]:
    """Say an abstract sentence in a language.

    Args:
        sentence: root of an abstract sentence.
        language: the language.

    Returns:
        The words in order. `head` counts from one; the root's is zero.
    """
    nodes = list(_in_order(sentence, language.places))
    number = {id(node): i for i, node in enumerate(nodes, start=1)}
    heads = {id(child): number[id(node)] for node in nodes for child in node.children}
    words = []
    for node in nodes:
        lemma = MARKS[node.concept] if node.upos == "PUNCT" else language.stems[node.upos, node.concept]
        form = lemma + (language.affixes[node.affix] if node.affix else "")
        words.append(ToyWord(form, lemma, node.upos, _features(node.affix), heads.get(id(node), 0), node.deprel))
    return tuple(words)


def _in_order(node: Node, places: Mapping[str, int]) -> Iterator[Node]:
    """Yield a node and all below it in the order that the places give."""
    placed = sorted(((_place(child, node, places), i) for i, child in enumerate(node.children)))
    for place, i in placed:
        if place < 0:
            yield from _in_order(node.children[i], places)
    yield node
    for place, i in placed:
        if place > 0:
            yield from _in_order(node.children[i], places)


def _place(child: Node, head: Node, places: Mapping[str, int]) -> int:
    if child.upos == "PUNCT":
        return _SUBORDINATE_COMMA if child.concept == COMMA else _FULL_STOP
    return places[child.deprel]


def _features(affix: str) -> str:
    """Give the FEATS column of a word with this affix, a name of `AFFIXES` or nothing."""
    if affix in ("", "Adv"):
        return "_"
    if affix in ("Pres", "Past"):
        return f"Tense={affix}"
    noun_class, _, number = affix.rpartition(".")
    return f"NounClass={noun_class}|Number={number}" if noun_class else f"Number={number}"


def plain_text(words: Sequence[ToyWord]) -> str:
    """Return the sentence as people write it: no space before a mark."""
    return "".join(word.form if word.upos == "PUNCT" or i == 0 else f" {word.form}" for i, word in enumerate(words))


def conllu(words: Sequence[ToyWord], identifier: str) -> str:
    """Return the sentence as a CoNLL-U block, closed by an empty line.

    Args:
        words: the words of the sentence.
        identifier: the `sent_id`.
    """
    lines = [f"# sent_id = {identifier}", f"# text = {plain_text(words)}"]
    for i, word in enumerate(words, start=1):
        is_glued = i < len(words) and words[i].upos == "PUNCT"
        misc = "SpaceAfter=No" if is_glued else "_"
        columns = (i, word.form, word.lemma, word.upos, "_", word.feats, word.head, word.deprel, "_", misc)
        lines.append("\t".join(str(column) for column in columns))
    return "\n".join(lines) + "\n\n"
