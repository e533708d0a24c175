"""The parser's head: two biaffine classifiers straight over the encoder (Glavaš and Vulić 2021, EACL, section 3).

This is the shallow set-up that LT-SFT's paper uses: no layers between, a word is the mean of its sub-words, the first
special token stands for the root, and all scores come from the two bilinear maps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel

from ltsft.base import Base
from ltsft.errors import BaseModelError

HEAD = "biaffine parser of ltsft"
"""Stands in the config of an exported parser as `ltsft_head`: transformers has no such head."""


class Biaffine(nn.Module):
    """Score pairs of a dependant and a head: ``[x, 1] W [y, 1]`` for each output.

    Weights begin at zero: at first every head and every relation is equally good.

    Args:
        width: of both vectors.
        outputs: scores of a pair.
        has_head_bias: whether the vector of the head gets a 1 too, which makes scores of the dependant alone possible.
    """

    def __init__(self, width: int, outputs: int, *, has_head_bias: bool) -> None:
        super().__init__()
        self.has_head_bias = has_head_bias
        self.weight = nn.Parameter(torch.zeros(outputs, width + 1, width + int(has_head_bias)))

    def all_pairs(self, dependants: Tensor, heads: Tensor) -> Tensor:
        """Score every pair.

        Args:
            dependants: (batch, words, width).
            heads: (batch, heads, width).

        Returns:
            (batch, words, heads, outputs).
        """
        return torch.einsum("bwi,oij,bhj->bwho", *self._extended(dependants, heads))

    def matched(self, dependants: Tensor, heads: Tensor) -> Tensor:
        """Score the n-th dependant with the n-th head.

        Args:
            dependants: (pairs, width).
            heads: (pairs, width).

        Returns:
            (pairs, outputs).
        """
        left, weight, right = self._extended(dependants, heads)
        rows = torch.einsum("pi,oij->poj", left, weight)
        return torch.einsum("poj,pj->po", rows, right)

    def _extended(self, dependants: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = dependants.new_ones(1)
        left = torch.cat([dependants, one.expand(*dependants.shape[:-1], 1)], dim=-1)
        right = torch.cat([heads, one.expand(*heads.shape[:-1], 1)], dim=-1) if self.has_head_bias else heads
        return left, self.weight.to(left.dtype), right.to(left.dtype)


class BiaffineParser(PreTrainedModel):
    """An encoder with the parser's head.

    Args:
        classifier: a token classifier of the base; its encoder and its config, labels included, become the parser's.
    """

    base_model_prefix = "encoder"
    # what the encoder cannot do, it has said when it was loaded
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__(classifier.config)
        config: Any = classifier.config
        self.encoder = classifier.base_model
        rate = getattr(config, "hidden_dropout_prob", None)
        self.dropout = nn.Dropout(0.1 if rate is None else rate)
        self.arcs = Biaffine(config.hidden_size, 1, has_head_bias=False)
        self.relations = Biaffine(config.hidden_size, len(config.id2label), has_head_bias=True)
        config.ltsft_head = HEAD

    def words(self, input_ids: Tensor, attention_mask: Tensor, places: Tensor, *, count: int) -> Tensor:
        """Give the vector of the root and of each word.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length).
            places: to which word a sub-word belongs, (batch, length): 0 the root, 1 the first word, -1 none.
            count: words of the longest sentence.

        Returns:
            (batch, count + 1, width): means over the sub-words; zero for a word that has none.
        """
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        belongs = places.unsqueeze(1) == torch.arange(count + 1, device=places.device).view(1, -1, 1)
        shares = belongs.to(states.dtype)  # (batch, words, length)
        means: Tensor = (shares @ states) / shares.sum(-1, keepdim=True).clamp(min=1.0)
        vectors: Tensor = self.dropout(means)
        return vectors

    def arc_scores(self, vectors: Tensor) -> Tensor:
        """Score every head of every word: (batch, words, words + 1), from `words`; in float32."""
        return self.arcs.all_pairs(vectors[:, 1:], vectors).squeeze(-1).float()

    def relation_scores(self, vectors: Tensor, heads: Tensor, where: Tensor) -> Tensor:
        """Score the relations of words to given heads.

        Args:
            vectors: from `words`.
            heads: numbers of the heads, (batch, words).
            where: bool, (batch, words): the words that are asked for.

        Returns:
            (number of True, relations), in float32.
        """
        chosen = torch.gather(vectors, 1, heads.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))
        return self.relations.matched(vectors[:, 1:][where], chosen[where]).float()


def new_parser(base: Base, labels: Sequence[str], *, seed: int) -> BiaffineParser:
    """Load the base with a new parser's head for these relations; it begins at zero, whatever the seed.

    Raises:
        BaseModelError: it cannot be loaded, or lacks weights of the encoder.
    """
    return BiaffineParser(base.token_classifier(labels, seed=seed))


def load_parser(folder: str | Path) -> BiaffineParser:
    """Load an exported composition of a parser; the Auto classes of transformers cannot, for they have no such head.

    Args:
        folder: what `ltsft compose` wrote.

    Raises:
        BaseModelError: the folder does not hold a parser.
    """
    folder = Path(folder)
    try:
        declared = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("ltsft_head")
        if declared != HEAD:
            raise BaseModelError(f"{folder} does not hold a parser; its config.json must have ltsft_head: {HEAD!r}")
        parser = BiaffineParser(AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(folder)))
        parser.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"{folder} cannot be loaded as a parser: {str(error).splitlines()[0]}") from error
    parser.train(False)
    return parser
