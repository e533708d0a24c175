"""Dependency parsing: biaffine scores by hand, words as means, and attachment scores as the shared task counts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ltsft.base import Base, load_base, parameter_roles
from ltsft.composition.compose import composed, export_composition
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.data.sources import Row
from ltsft.errors import BaseModelError, SourceError
from ltsft.objectives.biaffine import Biaffine, BiaffineParser, load_parser
from ltsft.objectives.dependency import IGNORE, RELATIONS, DependencyParsing
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.train import train_sft

LABELS = ("root", "nsubj", "obj", "punct")
NO_SUBWORD = "\u200b"


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    from tokenizers import normalizers

    tokenizer = load_base(str(tiny_base)).tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(NO_SUBWORD, "")
    return tokenizer


def parsing(tokenizer: PreTrainedTokenizerBase, max_length: int = 32) -> DependencyParsing:
    return DependencyParsing(tokenizer, labels=LABELS, max_length=max_length)


def row(words: str, heads: tuple[int, ...], deprels: tuple[str, ...] | None = None) -> Row:
    split = tuple(words.split(" "))
    relations = deprels or tuple("root" if head == 0 else "obj" for head in heads)
    return Row(split, ("X",) * len(split), heads, relations, 1, "conllu:t", words)


def filled_parser(base: Base, seed: int = 0) -> BiaffineParser:
    parser = DependencyParsing.new_model(base, LABELS, seed=0)
    assert isinstance(parser, BiaffineParser)
    generator = torch.Generator().manual_seed(seed)
    for biaffine in (parser.arcs, parser.relations):
        nn.init.normal_(biaffine.weight, std=0.3, generator=generator)
    return parser.eval()


@pytest.mark.parametrize("has_head_bias", [False, True])
def test_biaffine_scores_are_those_computed_by_hand(has_head_bias: bool) -> None:
    torch.manual_seed(0)
    biaffine = Biaffine(3, 2, has_head_bias=has_head_bias)
    nn.init.normal_(biaffine.weight)
    dependants, heads = torch.randn(1, 4, 3), torch.randn(1, 5, 3)
    scores = biaffine.all_pairs(dependants, heads)
    for w in range(4):
        for h in range(5):
            for o in range(2):
                x = [*dependants[0, w].tolist(), 1.0]
                y = [*heads[0, h].tolist(), *([1.0] if has_head_bias else [])]
                weight = biaffine.weight[o].tolist()
                by_hand = sum(x[i] * weight[i][j] * y[j] for i in range(len(x)) for j in range(len(y)))
                assert scores[0, w, h, o].item() == pytest.approx(by_hand, abs=1e-5)
    torch.testing.assert_close(biaffine.matched(dependants[0], heads[0, :4]), scores[0, range(4), range(4)])


def test_a_word_is_the_mean_of_its_subwords_and_the_root_is_the_first_special_token(
    base: Base, tokenizer: PreTrainedTokenizerBase
) -> None:
    objective, parser = parsing(tokenizer), filled_parser(base)
    rows = [row(f"qzx {NO_SUBWORD} bado .", (0, 1, 1, 1)), row("bado", (0,))]
    batch = objective.collate(objective.examples(rows), torch.Generator())
    with torch.no_grad():
        vectors = parser.words(batch["input_ids"], batch["attention_mask"], batch["places"], count=4)
        states = parser.encoder(input_ids=batch["input_ids"][:1]).last_hidden_state[0]
    first = len(tokenizer("qzx", add_special_tokens=False)["input_ids"])
    assert first > 1
    torch.testing.assert_close(vectors[0, 0], states[0])
    torch.testing.assert_close(vectors[0, 1], states[1 : 1 + first].mean(0))
    assert not vectors[0, 2].any(), "a word without a sub-word has no vector"
    assert not vectors[1, 2:].any()
    assert (batch["heads"][1] == IGNORE).tolist() == [False, True, True, True]


def test_the_loss_is_that_of_heads_plus_that_of_relations_computed_pair_by_pair(
    base: Base, tokenizer: PreTrainedTokenizerBase
) -> None:
    objective, parser = parsing(tokenizer), filled_parser(base)
    rows = [row("bado eto .", (2, 0, 2), ("nsubj", "root", "punct")), row("eto bado", (0, 1), ("root", "obj"))]
    batch = objective.collate(objective.examples(rows), torch.Generator())
    with torch.no_grad():
        loss = objective.loss(parser, batch)
        vectors = parser.words(batch["input_ids"], batch["attention_mask"], batch["places"], count=3)
        arcs = torch.einsum("bwi,ij,bhj->bwh", with_one(vectors[:, 1:]), parser.arcs.weight[0], vectors)
        relations = torch.einsum(
            "bwi,rij,bhj->bwhr", with_one(vectors[:, 1:]), parser.relations.weight, with_one(vectors)
        )
    arc_loss = relation_loss = 0.0
    for b, sentence in enumerate(rows):
        count = len(sentence.words)
        for w, (head, name) in enumerate(zip(sentence.heads, sentence.deprels, strict=True)):
            arc_loss -= float(arcs[b, w, : count + 1].log_softmax(-1)[head])
            relation_loss -= float(relations[b, w, head].log_softmax(-1)[LABELS.index(name)])
    assert loss.item() == pytest.approx((arc_loss + relation_loss) / 5, rel=1e-5)


def with_one(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, torch.ones(*vectors.shape[:-1], 1)], dim=-1)


class Oracle(nn.Module):
    """Gives heads and relations that stand in its tables, as scores."""

    def __init__(self, heads: list[list[int]], relations: list[list[int]]) -> None:
        super().__init__()
        self.heads, self.relations = heads, relations
        self.weight = nn.Parameter(torch.zeros(1))

    def words(self, input_ids: Tensor, attention_mask: Tensor, places: Tensor, *, count: int) -> Tensor:
        self.rows = input_ids[:, 1].tolist()  # tells which sentence this is: each begins with another sub-word
        return torch.zeros(len(input_ids), count + 1, 1)

    def arc_scores(self, vectors: Tensor) -> Tensor:
        scores = torch.zeros(len(vectors), vectors.shape[1] - 1, vectors.shape[1])
        for b, first in enumerate(self.rows):
            for w, head in enumerate(self.heads[self.order[first]]):
                scores[b, w, head] = 9.0
        return scores

    def relation_scores(self, vectors: Tensor, heads: Tensor, where: Tensor) -> Tensor:
        wanted = [r for first in self.rows for r in self.relations[self.order[first]]]
        return torch.nn.functional.one_hot(torch.tensor(wanted), len(LABELS)).float()

    order: dict[int, int]


def test_attachment_scores_are_counted_as_in_the_shared_task(tokenizer: PreTrainedTokenizerBase) -> None:
    """Punctuation counts, subtypes do not: `nsubj:pass` for `nsubj` is right, and a wrong head makes the word wrong."""
    objective = parsing(tokenizer)
    rows = [
        row("bado eto a .", (2, 0, 2, 2), ("nsubj:pass", "root", "obj", "punct")),
        row("eto .", (0, 1), ("root", "punct")),
    ]
    oracle = Oracle([[2, 0, 1, 2], [0, 1]], [[1, 0, 2, 3], [0, 2]])
    examples = objective.examples(rows)
    oracle.order = {example.input_ids[1]: example.sentence for example in examples}
    found = objective.evaluate(oracle, examples)  # type: ignore[arg-type]
    # bado, eto and . of the first have head and relation, a has not; of the second . has the head alone
    assert found.outcomes == ((3, 4), (1, 2))
    assert found.metrics["uas"] == pytest.approx(5 / 6)
    assert found.score == found.metrics["las"] == pytest.approx(4 / 6)
    assert found.metrics["size"] == 6.0


def test_heads_that_do_not_form_a_tree_are_made_one(tokenizer: PreTrainedTokenizerBase) -> None:
    objective = parsing(tokenizer)
    examples = objective.examples([row("bado eto", (0, 1))])
    oracle = Oracle([[2, 1]], [[0, 2]])  # each the other's head
    oracle.order = {examples[0].input_ids[1]: 0}
    found = objective.evaluate(oracle, examples)  # type: ignore[arg-type]
    assert found.metrics["uas"] in (0.0, 1.0), "one of the two is the root, the other hangs on it"


def test_scores_do_not_depend_on_the_company_of_a_sentence(base: Base, tokenizer: PreTrainedTokenizerBase) -> None:
    objective, parser = parsing(tokenizer), filled_parser(base)
    rows = [row(" ".join("bado" for _ in range(n)), (0, *range(1, n))) for n in (1, 2, 3, 5, 8)]
    examples = objective.examples(rows)
    whole = objective.evaluate(parser, examples)
    assert objective.evaluate(parser, examples[::-1]).outcomes == whole.outcomes
    for i, example in enumerate(examples):
        assert objective.evaluate(parser, [example]).outcomes == (whole.outcomes[i],)


def test_a_long_sentence_keeps_all_its_words(tokenizer: PreTrainedTokenizerBase) -> None:
    words = " ".join(["qzxvw"] * 12)
    (example,) = parsing(tokenizer, max_length=20).examples([row(words, (0, *[1] * 11))])
    assert len(example.input_ids) == len(example.places) <= 20
    assert set(range(13)) <= set(example.places), "each word keeps a sub-word"
    (short,) = parsing(tokenizer, max_length=10).examples([row(words, (0, *[1] * 11))])
    assert len(short.input_ids) == 10
    assert len(short.heads) == 12


def test_an_unknown_relation_is_refused_by_name(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(SourceError, match=r":\d+: relation 'vocative' is not in the label set"):
        parsing(tokenizer).examples([row("bado eto", (0, 1), ("root", "vocative"))])
    assert len(RELATIONS) == len(set(RELATIONS)) == 37


def recipe(steps: int) -> Recipe:
    phase = PhaseSettings(min_steps=steps, max_steps=steps, learning_rate=5e-3)
    return Recipe(density=0.2, full=phase, sparse=phase, batch_size=8, max_length=32, evaluations=1, dropout=0.0)


def test_a_parser_is_learnt_composed_and_exported_without_code(
    base: Base, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Every word hangs on the one before it: a tree that the tiny base can learn."""
    objective = parsing(tokenizer)
    rows = [row(" ".join(["bado", "eto", "a", "."][: 2 + i % 3]), (0, *range(1, 2 + i % 3))) for i in range(24)]
    examples = objective.examples(rows)
    before = objective.evaluate(objective.new_model(base, LABELS, seed=0).eval(), examples)
    sft = train_sft(
        base,
        Training(
            objective=objective,
            kind="task",
            subject="dp",
            recipe=recipe(30),
            seed=1,
            data=TrainingData(examples, examples),
        ),
        folder=tmp_path / "work",
        device="cpu",
    )
    assert set(sft.head) == {"arcs.weight", "relations.weight"}
    assert sft.labels == LABELS
    assert all("arcs" not in name for name in sft.diffs)
    model: Any = objective.new_model(base, sft.labels, seed=0).eval()
    with composed(model, [(sft, 1.0)], base=base.ref):
        learnt = objective.evaluate(model, examples)
    assert learnt.score > max(0.9, before.score)
    folder = export_composition(model, base.tokenizer, [(sft, 1.0)], tmp_path / "parser", base=base.ref)
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.py"))
    assert "load_parser" in (folder / "README.md").read_text()
    assert objective.evaluate(load_parser(folder), examples).outcomes == learnt.outcomes


def test_another_folder_is_no_parser(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="does not hold a parser"):
        load_parser(tiny_base)
    with pytest.raises(BaseModelError, match="cannot be loaded as a parser"):
        load_parser(tmp_path)


def test_the_head_is_trained_whole_and_the_encoder_may_be_sparse(base: Base) -> None:
    parser = DependencyParsing.new_model(base, LABELS, seed=0)
    roles = parameter_roles(parser)
    assert set(roles.head) == {"arcs.weight", "relations.weight"}
    masked_lm = parameter_roles(base.masked_lm())
    assert {n: p.shape for n, p in roles.maskable.items()} == {n: p.shape for n, p in masked_lm.maskable.items()}
