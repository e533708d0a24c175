"""The base: a pretrained encoder with a masked-LM head, what identifies it, and what each parameter is for.

Everything goes through the Auto classes: there is no code for a single architecture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ltsft.errors import BaseModelError, ConfigError
from ltsft.sft import BaseRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GOLDEN_TEXTS = (
    "Føroyar, 1 234,5 – «Hvussu?»",
    "  leading and  double spaces ",
    "don't re-do l'été…",
    "ÅRSÆRIND straße ﬁn İstanbul",
    "e\u0301 Ọ̀rọ̀ ŋàŋà",
    "Жёлтый ӵыжы 1917",
    "Ελληνικά",
    "Հայերեն ի՞նչ",
    "ქართული",
    'עברית ש"ס',
    "العربية مي\u200cروم ١٢٣",
    "हिन्दी क्\u200dष १२",
    "বাংলা",
    "தமிழ்",
    "മലയാളം അവന്\u200d",
    "ภาษาไทย",
    "ខ្មែរ",
    "አማርኛ።",
    "中文日本語カタカナ",
    "한국어",
    "ᏣᎳᎩ ߒߞߏ 👩\u200d🌾",
    "a\u00adb\u200ec\tTab\u00a0",
)
"""Scripts, digits, joiners, spaces and case: where tokenizers have changed under the same files."""

_WORKED_OUT = (".position_ids", ".token_type_ids", ".inv_freq")
"""Ends of names that old checkpoints store though they can be worked out."""


@dataclass(frozen=True)
class Roles:
    """What each parameter of a model is for.

    Attributes:
        maskable: encoder parameters that may be sparse, by name relative to `model.base_model`.
        head: parameters outside the encoder that are trained whole, by full name.
        frozen: names, full, of the parameters that stay as they are.
    """

    maskable: dict[str, nn.Parameter]
    head: dict[str, nn.Parameter]
    frozen: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of maskable weights."""
        return sum(p.numel() for p in self.maskable.values())


class Base:
    """A loaded base: its tokenizer, its identity, and fresh models with one head or another."""

    def __init__(self, id: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self.id = id
        self.revision = revision
        self.tokenizer = tokenizer

    def masked_lm(self) -> PreTrainedModel:
        """Load a fresh float32 model with the masked-LM head, output embeddings untied from the input's.

        Raises:
            BaseModelError: it cannot be loaded, or lacks weights of the encoder or of the head.
        """
        model, missing = _from_pretrained("AutoModelForMaskedLM", self.id, self.revision)
        self._refuse_missing(model, missing)
        self._refuse_large_tokenizer(model)
        _untie_output_embeddings(model)
        return model

    def token_classifier(self, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load a fresh float32 model with a new token-classification head, initialised from the seed.

        Raises:
            BaseModelError: it cannot be loaded, or lacks weights of the encoder.
        """
        return self._with_new_head("AutoModelForTokenClassification", seed=seed, **_label_options(labels))

    def sequence_classifier(self, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load a fresh float32 model with a new sequence-classification head, initialised from the seed.

        Raises:
            BaseModelError: it cannot be loaded, or lacks weights of the encoder.
        """
        return self._with_new_head("AutoModelForSequenceClassification", seed=seed, **_label_options(labels))

    def question_answerer(self, *, seed: int) -> PreTrainedModel:
        """Load a fresh float32 model with a new head that points at answers, initialised from the seed.

        Raises:
            BaseModelError: it cannot be loaded, or lacks weights of the encoder.
        """
        return self._with_new_head("AutoModelForQuestionAnswering", seed=seed)

    def _with_new_head(self, auto_class: str, *, seed: int, **options: Any) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, missing = _from_pretrained(auto_class, self.id, self.revision, **options)
        prefix = f"{model.base_model_prefix}."
        new = {f"{prefix}{name}" for name in pooler_parameters(model)}
        self._refuse_missing(model, {name for name in missing if name.startswith(prefix)} - new)
        return model

    def _refuse_missing(self, model: PreTrainedModel, missing: set[str]) -> None:
        """Refuse a base with made-up weights: they would be others at every load."""
        if missing:
            raise BaseModelError(
                f"base {self.id!r}{_at(self.revision)} lacks {len(missing)} weights of {type(model).__name__}, such as "
                f"{min(missing)!r}; save it with its masked-LM head (AutoModelForMaskedLM, save_pretrained)"
            )

    def _refuse_large_tokenizer(self, model: PreTrainedModel) -> None:
        """Refuse a tokenizer that gives sub-words which the embeddings have no row for."""
        embeddings: Any = model.get_input_embeddings()
        rows = embeddings.weight.shape[0]
        token, highest = max(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        if highest >= rows:
            raise BaseModelError(
                f"the tokenizer of base {self.id!r}{_at(self.revision)} is larger than the base: {token!r} has id "
                f"{highest}, and the embeddings have {rows} rows; resize them (resize_token_embeddings) and save the "
                "base again, or take the tokenizer that belongs to it"
            )

    @cached_property
    def _facts(self) -> tuple[str, str, int | None]:
        """Fingerprints of the encoder and of the head, and how many positions there are, from one loading."""
        model = self.masked_lm()
        encoder = fingerprint_parameters(model.base_model.named_parameters())
        inside = {id(p) for p in model.base_model.parameters()}
        head = fingerprint_parameters((n, p) for n, p in model.named_parameters() if id(p) not in inside)
        return encoder, head, _positions(model)

    @cached_property
    def ref(self) -> BaseRef:
        """The identity of the base: what every SFT is bound to."""
        folder = Path(self.id)
        return BaseRef(
            id=folder.name if folder.is_dir() else self.id,  # a path of this machine would make SFT files differ
            revision=self.revision,
            fingerprint=self._facts[0],
            tokenizer_fingerprint=fingerprint_tokenizer(self.tokenizer),
            golden=golden_ids(self.tokenizer),
        )

    @property
    def head_fingerprint(self) -> str:
        """SHA-256 over the masked-LM head: it determines what a language SFT learns, but not what it composes with."""
        return self._facts[1]

    @property
    def positions(self) -> int | None:
        """Sub-words in the longest sequence that the base has positions for; None where it has no table of them."""
        return self._facts[2]


def load_base(id: str, revision: str | None = None) -> Base:
    """Find a base by hub id and revision, or by folder.

    Args:
        id: hub id such as ``google-bert/bert-base-multilingual-cased``, or a folder.
        revision: commit, tag or branch on the hub; ignored by folders.

    Raises:
        BaseModelError: it cannot be loaded, or has no fast tokenizer with a mask and a pad token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(id, revision=revision, use_fast=True)
    except Exception as error:  # a damaged tokenizer.json fails as a plain Exception of the Rust library
        raise BaseModelError(
            f"cannot load the tokenizer of base {id!r}{_at(revision)}: {_first_line(error)}; "
            "give a hub id with a revision that exists, or a folder saved with save_pretrained"
        ) from error
    if not tokenizer.is_fast:
        raise BaseModelError(f"base {id!r} has no fast tokenizer (tokenizer.json); save one with save_pretrained first")
    files = {"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()}
    if Path(id).is_dir() and not any((Path(id) / file).is_file() for file in files):
        raise BaseModelError(
            f"base {id!r} has no files of a tokenizer ({', '.join(sorted(files))}); save its tokenizer beside it: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    if tokenizer.pad_token_id is None:
        raise BaseModelError(
            f"the tokenizer of base {id!r} has no pad token, which batches are filled up with; set pad_token and save "
            "the tokenizer again"
        )
    if tokenizer.mask_token_id is None:
        raise BaseModelError(f"the tokenizer of base {id!r} has no mask token; a masked language model has one")
    return Base(id, revision, tokenizer)


def parameter_roles(model: PreTrainedModel, freeze: Iterable[str] = (), *, has_norm_biases: bool = False) -> Roles:
    """Say which parameters may be sparse, which are head and which are frozen.

    The encoder's may be sparse, less its layer norms and what `freeze` names; parameters outside the encoder are the
    head, and so is a pooler, which stands in the encoder of some sequence classifiers and in no masked LM; output
    embeddings stay frozen, as the authors of LT-SFT advise (Ansell et al. 2022, section 4). The bias beside them is of
    the head: how frequent each sub-word is in a language has to go somewhere, and without it the encoder takes it in.

    Args:
        model: encoder with a head; output embeddings must be untied (`Base.masked_lm` does it).
        freeze: shell-style patterns over names relative to the encoder, such as ``embeddings.*``.
        has_norm_biases: whether the biases of layer norms may be sparse, too.

    Raises:
        ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    encoder = model.base_model
    norms = {
        id(p)
        for module in encoder.modules()
        if _is_norm(module)
        for name, p in module.named_parameters(recurse=False)
        if not (has_norm_biases and name == "bias")
    }
    pooler = pooler_parameters(model)
    inside = {name: p for name, p in encoder.named_parameters() if name not in pooler}
    patterns = tuple(freeze)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in inside):
            raise ConfigError(
                f"freeze: the pattern {pattern!r} matches no encoder parameter; names look like {next(iter(inside))!r}"
            )
    maskable = {
        name: p
        for name, p in inside.items()
        if id(p) not in norms and not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not maskable:
        raise ConfigError(f"freeze: {', '.join(patterns)} leaves no parameter of the encoder to train")
    encoder_ids = {id(p) for p in inside.values()}
    output = model.get_output_embeddings()
    output_ids = {id(output.weight)} if output is not None else set()
    head = {n: p for n, p in model.named_parameters() if id(p) not in encoder_ids | output_ids}
    both = sorted(set(head) & set(maskable))
    if both:
        raise BaseModelError(f"{type(model).__name__}: {both[0]!r} is a parameter both of the encoder and of the head")
    trained = {id(p) for p in (*maskable.values(), *head.values())}
    frozen = tuple(n for n, p in model.named_parameters() if id(p) not in trained)
    return Roles(maskable=maskable, head=head, frozen=frozen)


def encoder_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Give the encoder's parameters under their own names, relative to the encoder, tied ones under each name.

    While LoRA modules are in place (`ltsft.methods.low_rank`) the linear layers stand inside them; the parameters of
    the modules themselves are not the encoder's.
    """
    found = model.base_model.named_parameters(remove_duplicate=False)
    return {name.replace(".base_layer.", "."): p for name, p in found if ".lora_" not in name}


def pooler_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Name the parameters of a model's pooler, relative to the encoder; none where it has no pooler.

    A pooler belongs to the head of a sequence classifier: a masked LM has none, so no diff can count from its values.
    """
    pooler = getattr(model.base_model, "pooler", None)
    names = (name for name, _ in pooler.named_parameters()) if isinstance(pooler, nn.Module) else ()
    return frozenset(f"pooler.{name}" for name in names)


def fingerprint_parameters(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Hash names, shapes and float32 bytes, in order of names; 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def golden_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Give what the tokenizer makes of `GOLDEN_TEXTS`: another version of its library may make something else of them.

    Args:
        tokenizer: a base's.

    Returns:
        Each text with its ids, special tokens included.
    """
    return tuple((text, tuple(tokenizer(text)["input_ids"])) for text in GOLDEN_TEXTS)


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what the tokenizer does: its model, normaliser, added and special tokens; 64 hex digits."""
    backend: Any = tokenizer
    digest = hashlib.sha256(backend.backend_tokenizer.to_str().encode())
    for name, token in sorted(tokenizer.special_tokens_map.items()):
        digest.update(f"{name}\0{token}\0".encode())
    return digest.hexdigest()


def _from_pretrained(
    auto_class: str, id: str, revision: str | None, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load a model; give it with the names of the weights that the files lack."""
    import transformers  # with its models it takes seconds; reading a project or a release does without

    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            id, revision=revision, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise BaseModelError(
            f"cannot load base {id!r}{_at(revision)} with {auto_class}: {_first_line(error)}; "
            "it must be an encoder with a masked-LM head, stored as safetensors"
        ) from error
    if not isinstance(model, transformers.PreTrainedModel):
        raise BaseModelError(f"base {id!r} did not load as a Hugging Face model but as {type(model).__name__}")
    _refuse_unused(model, info["unexpected_keys"], id, revision)
    return cast("PreTrainedModel", model.float()), set(info["missing_keys"])


def _refuse_unused(model: PreTrainedModel, keys: Iterable[str], id: str, revision: str | None) -> None:
    """Refuse a checkpoint with weights of the encoder that the model has no place for: it is another model.

    Heads of other tasks and poolers may be left out, and what is worked out anew at each start.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name for name, _ in model.base_model.named_children()}
    unused = sorted(
        key
        for key in keys
        if (key.startswith(prefix) or key.partition(".")[0] in parts)
        and not key.removeprefix(prefix).startswith("pooler.")
        and not key.endswith(_WORKED_OUT)
    )
    if unused:
        raise BaseModelError(
            f"base {id!r}{_at(revision)} holds {len(unused)} weights that {type(model).__name__} does not use, such as "
            f"{unused[0]!r}: it is not the model that its config.json says (layers, kind of positions); mend the "
            "config, or take a version of transformers that knows this model"
        )


def check_length(max_length: int, positions: int | None, *, place: str) -> None:
    """Refuse sequences that are longer than a base's table of positions.

    Args:
        max_length: sub-words in a sequence.
        positions: of the base, see `Base.positions`.
        place: where the length is set, for the message, such as ``recipes.pos.max_length``.

    Raises:
        ConfigError: naming both lengths.
    """
    if positions is not None and max_length > positions:
        raise ConfigError(f"{place}: must be at most {positions}, the base has no more positions; got {max_length}")


def _positions(model: PreTrainedModel) -> int | None:
    """Give the length of the table of absolute positions; None where the model has none."""
    for name, module in model.base_model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            before = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's begin behind the padding
            return module.num_embeddings - before
    return None


def _label_options(labels: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(labels))
    return {"num_labels": len(labels), "id2label": names, "label2id": {label: i for i, label in names.items()}}


def _untie_output_embeddings(model: PreTrainedModel) -> None:
    output = model.get_output_embeddings()
    if output is None:
        raise BaseModelError(f"{type(model).__name__} has no output embeddings; a masked-LM head is needed")
    embeddings: Any = output
    embeddings.weight = nn.Parameter(embeddings.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) or "Norm" in type(module).__name__


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def locate_base(id: str, *, data_root: str) -> str:
    """Give the folder that a base id names, relative to the data root or as it is; otherwise the hub id itself."""
    for folder in (Path(data_root) / id, Path(id)):
        if (folder / "config.json").is_file():
            return str(folder)
    return id
