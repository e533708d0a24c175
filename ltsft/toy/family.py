"""The toy family: a seeded family of artificial languages and a small base that has read some of them.

The languages share one grammar and differ in lexicon (a set share of the words are cognates), in word order and in
affixes. The base is pre-trained on the seen ones, by the same masked-LM objective as language SFTs. Its tokenizer
knows the words of the whole family: the embeddings of words that occur only in unseen languages are there, and were
never trained. That is what a language SFT has to learn.

Nothing here is natural language: a score on this family says that the system works, and nothing about any language that
people speak.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from ltsft.toy.grammar import Grammar, Node, Shares, ToyLanguage, ToyWord, conllu, draw_family, plain_text, say
from ltsft.toy.labels import conll, entailment_pairs, questions
from ltsft.toy.settings import BASE, ToyConfig

VERSION = 2
"""Version of the procedure: raised when the same config would give other files."""
STAMP = "toy.json"
SPLITS = ("test", "dev", "train")
DATA = ("text", "treebanks", "entities", "entailment", "questions")
_README = """# Artificial languages

Everything in this folder was made by a program (`ltsft toy`): no line of it is natural language. The base in `base/`
has read the raw text of {seen}; it has not read {unseen}. `toy.json` has the settings.
"""

OnMessage = Callable[[str], None]


def make_toy(folder: str | Path, config: ToyConfig | None = None, *, on_progress: OnMessage | None = None) -> Path:
    """Write a toy family and its pre-trained base; do nothing if they are there.

    A stamp is written last: without it, or with the stamp of another config, everything is made anew (pre-training that
    was interrupted goes on).

    Args:
        folder: where to; gets `text/CODE.txt.gz`, `treebanks/CODE/SPLIT.conllu.gz`, `entities/CODE/SPLIT.conll.gz`,
            `entailment/CODE/SPLIT.tsv.gz`, `questions/CODE/SPLIT.jsonl.gz` and `base/`.
        config: the family; the demo's by default.
        on_progress: called with messages for people.

    Returns:
        The folder.
    """
    folder, config = Path(folder), config or ToyConfig()
    tell = on_progress or (lambda message: None)
    if _is_made(folder, config):
        tell(f"{folder}: the artificial family and its base are there already")
        return folder
    (folder / STAMP).unlink(missing_ok=True)
    tell(f"{folder}: writing {config.seen + config.unseen} artificial languages")
    family = write_family(folder, config)
    from ltsft.toy.pretraining import pretrain_base  # torch is slow to import, and not needed where all is there

    identity = _identity(config)
    work = folder / f"pretraining-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    pretrain_base(folder, config, family, work=work, on_progress=tell)
    for unfinished in folder.glob("pretraining-*"):
        shutil.rmtree(unfinished)
    made = sorted(f for part in (*DATA, BASE) for f in (folder / part).rglob("*") if f.is_file())
    files = {str(f.relative_to(folder)): f.stat().st_size for f in made}
    stamp = folder / f"{STAMP}.partial"
    stamp.write_text(json.dumps({**identity, "files": files}, indent=1) + "\n", encoding="utf-8")
    stamp.replace(folder / STAMP)
    return folder


def _identity(config: ToyConfig) -> dict[str, object]:
    return {"artificial": True, "version": VERSION, "config": asdict(config)}


def _is_made(folder: Path, config: ToyConfig) -> bool:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        files = stamp.pop("files")
        return stamp == _identity(config) and all((folder / f).stat().st_size == size for f, size in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def toy_family(config: ToyConfig) -> dict[str, ToyLanguage]:
    """Draw the languages of a config, by code."""
    shares = Shares(open=config.open_share, closed=config.closed_share, affix=config.affix_share)
    codes = (*config.seen_codes, *config.unseen_codes)
    return draw_family(codes, seen=config.seen, seed=config.seed, sizes=config.sizes, shares=shares)


def write_family(folder: Path, config: ToyConfig) -> dict[str, ToyLanguage]:
    """Write raw text, treebanks and other labelled data of each language.

    No sentence of a treebank is in the text or in another split. Entities, pairs and questions are made from the
    sentences of the treebank's split of the same name.

    Args:
        folder: where to.
        config: the family.

    Returns:
        The languages by code.
    """
    family = toy_family(config)
    grammar = Grammar(config.sizes, exponent=config.exponent)
    for code, language in family.items():
        said: set[str] = set()
        sentences = _sentences(grammar, language, random.Random(f"{config.seed}:{code}:sentences"), said)
        for split in SPLITS:
            drawn = [next(sentences) for _ in range(getattr(config, split))]
            pairs = list(entailment_pairs([node for node, _ in drawn], language, random.Random(f"{code}:{split}")))
            said |= {_letters(text) for _, text, _ in pairs}
            _write_split(folder, language, split, [words for _, words in drawn], pairs)
        lines = (f"{plain_text(next(sentences)[1])}\n" for _ in range(config.text_lines))
        _write_gzip(folder / "text" / f"{code}.txt.gz", lines)
    readme = _README.format(seen=", ".join(config.seen_codes), unseen=", ".join(config.unseen_codes) or "no other")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return family


def _write_split(
    folder: Path,
    language: ToyLanguage,
    split: str,
    sentences: list[tuple[ToyWord, ...]],
    pairs: list[tuple[str, str, str]],
) -> None:
    code = language.code
    trees = (conllu(words, f"{code}-{split}-{i}") for i, words in enumerate(sentences, start=1))
    _write_gzip(folder / "treebanks" / code / f"{split}.conllu.gz", trees)
    entities = (conll(words, language) for words in sentences)
    _write_gzip(folder / "entities" / code / f"{split}.conll.gz", entities)
    table = ("\t".join(row) + "\n" for row in [("premise", "hypothesis", "label"), *pairs])
    _write_gzip(folder / "entailment" / code / f"{split}.tsv.gz", table)
    _write_gzip(folder / "questions" / code / f"{split}.jsonl.gz", questions(sentences))


def _sentences(
    grammar: Grammar, language: ToyLanguage, rng: random.Random, said: set[str]
) -> Iterator[tuple[Node, tuple[ToyWord, ...]]]:
    """Yield sentences of a language without end, abstract and said, none of them twice or among what was said."""
    while True:
        node = grammar.sentence(rng)
        words = say(node, language)
        letters = _letters(plain_text(words))
        if letters not in said:
            said.add(letters)
            yield node, words


def _letters(text: str) -> str:
    """Give what tells sentences apart: a full stop more or a space less does not make another one."""
    return "".join(c for c in text.casefold() if c.isalnum())


def _write_gzip(file: Path, parts: Iterable[str]) -> None:
    """Write text packed with gzip, without the time and the name that would make equal files differ."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
        for part in parts:
            packed.write(part.encode("utf-8"))
