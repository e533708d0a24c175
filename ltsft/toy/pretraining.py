"""The toy base: a small RoFormer pre-trained on the seen languages of an artificial family.

RoFormer (Su et al. 2021, arXiv 2104.09864) is BERT with rotary positions. A model this small learns to look at the
neighbours of a word within some hundred steps with them; with BERT's learnt positions it takes thousands.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, RoFormerConfig, RoFormerForMaskedLM

from ltsft.config import PhaseSettings, Recipe, Source
from ltsft.data import read_text
from ltsft.objectives import MaskedLM, pack_text, split_held_out
from ltsft.toy.grammar import MARKS, ToyLanguage
from ltsft.toy.settings import BASE, BaseSettings, ToyConfig
from ltsft.training import Phase, TrainingData, run_phase

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HELD_OUT = 64
LONGEST = 64
INITIAL_SPREAD = 0.1
"""Standard deviation of new weights: the usual 0.02 is meant for widths of 768, and holds back narrow layers."""
MESSAGES = 5


def pretrain_base(
    folder: Path,
    config: ToyConfig,
    family: Mapping[str, ToyLanguage],
    *,
    work: Path,
    on_progress: Callable[[str], None],
    checkpoint_seconds: float = 60.0,
) -> Path:
    """Pre-train the toy base by masked LM on the raw text of the seen languages.

    Input and output embeddings are tied, as in BERT. Started again on the same folder after a kill, it goes on.

    Args:
        folder: the family's folder, with the raw text; the base is written below it.
        config: the family.
        family: its languages by code.
        work: folder for checkpoints, of this config alone; the caller removes it.
        on_progress: called with messages for people.
        checkpoint_seconds: time between checkpoints.

    Returns:
        The folder of the base, in Hugging Face's format.
    """
    settings = config.base
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(family)
    texts = [
        Source.model_validate(f"text:{(folder / 'text' / f'{code}.txt.gz').absolute()}") for code in config.seen_codes
    ]
    packed = pack_text(
        read_text(texts), tokenizer, max_length=settings.max_length, file=work / f"{settings.max_length}.tokens"
    )
    model = _build_model(settings, tokenizer, seed=config.seed)
    data = TrainingData(*split_held_out(packed, HELD_OUT))
    objective = MaskedLM(tokenizer, mask_probability=settings.mask_probability)
    phase = _phase(config, model, objective, data, folder=work / "phase", checkpoint_seconds=checkpoint_seconds)

    def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        loss = metrics.get("pre-training.loss")
        if loss is not None and step % max(1, steps // MESSAGES) < max(1, steps // 50):
            on_progress(f"pre-training the toy base: step {step} of {steps}, loss {loss:.2f}")

    result = run_phase(phase, report)
    on_progress(f"pre-trained the toy base: held-out loss {-result.score:.2f} after {result.steps} steps")
    return _save(model, tokenizer, folder / BASE)


def _phase(
    config: ToyConfig,
    model: PreTrainedModel,
    objective: MaskedLM,
    data: TrainingData,
    *,
    folder: Path,
    checkpoint_seconds: float,
) -> Phase:
    """Give the one phase: everything trains, and nothing is pulled anywhere."""
    settings, parameters = config.base, dict(model.named_parameters())
    return Phase(
        name="pre-training",
        model=model,
        objective=objective,
        maskable=parameters,
        head={},
        support=None,
        pull_to={name: p.detach() for name, p in parameters.items()},
        settings=PhaseSettings(
            epochs=1, min_steps=settings.steps, max_steps=settings.steps, learning_rate=settings.learning_rate
        ),
        recipe=Recipe(
            density=1.0, batch_size=settings.batch_size, max_length=settings.max_length, warmup=0.1, evaluations=2
        ),
        seed=config.seed,
        examples=data.examples,
        held_out=data.held_out,
        folder=folder,
        checkpoint_seconds=checkpoint_seconds,
        device="cpu",
    )


def _build_model(settings: BaseSettings, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> PreTrainedModel:
    config = RoFormerConfig(
        vocab_size=len(tokenizer),
        embedding_size=settings.hidden,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=2 * settings.hidden,
        max_position_embeddings=LONGEST,
        type_vocab_size=1,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        initializer_range=INITIAL_SPREAD,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RoFormerForMaskedLM(config)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder


def build_tokenizer(family: Mapping[str, ToyLanguage]) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a family: every stem and every affix of every language is a sub-word.

    Single letters are sub-words too, so that no word of Latin letters is unknown. Nothing is trained: a
    WordPiece tokenizer takes the longest sub-word first, which is always the stem (see `toy_grammar`).
    """
    letters = sorted({chr(c) for c in range(ord("a"), ord("z") + 1)} | {chr(c) for c in range(ord("A"), ord("Z") + 1)})
    stems = sorted({stem for language in family.values() for stem in language.stems.values()})
    affixes = sorted({affix for language in family.values() for affix in language.affixes.values()})
    pieces = [*SPECIAL, *MARKS, *letters, *(f"##{letter}" for letter in letters), *stems, *(f"##{a}" for a in affixes)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=LONGEST,
    )
