"""The model card of an SFT: what it is, in words, for people who find its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ltsft.config import LT_SFT
from ltsft.precision import WORDS, numerics_of, summarise
from ltsft.sft.sft import SFT

__all__ = ["write_card"]


def write_card(sft: SFT, *, learnt_by: str = "") -> str:
    """Write the model card of an SFT: what it is, its base and density, and how to load it.

    Args:
        sft: The SFT.
        learnt_by: What its method stores, in words (`summary` of a method); nothing is said of it without.

    Returns:
        Markdown with the front matter of a Hugging Face model card.
    """
    is_paper = sft.method == LT_SFT
    tags = ["sparse-fine-tuning", "lt-sft" if is_paper else sft.method, sft.kind]
    front = {"base_model": sft.base.id, "library_name": "ltsft", "tags": tags}
    revision = f", revision `{sft.base.revision}`" if sft.base.revision else ""
    if sft.kind == "language":
        what = f"A language SFT for `{sft.subject}`, learnt by masked language modelling on raw text."
    else:
        source = ", ".join(f"`{language}`" for language in sft.source_languages) or "no language that is on record"
        what = f"A task SFT for the target task `{sft.subject}`, learnt from labelled data in {source}."
    lines = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        "",
        f"# {sft.kind} SFT: {sft.subject}",
        "",
        what,
        *(_LOTTERY_TICKET if is_paper else _other_method(sft, learnt_by)),
        "",
        "| | |",
        "|---|---|",
        f"| base | `{sft.base.id}`{revision} |",
        f"| base fingerprint | `{sft.base.fingerprint}` |",
        f"| tokenizer fingerprint | `{sft.base.tokenizer_fingerprint}` |",
        *(_sparsity(sft) if not sft.adapter else [f"| adapter | {sft.parameters:,} parameters |"]),
        *_numerics(sft),
        f"| head | {', '.join(f'`{name}`' for name in sorted(sft.head)) or 'none'} |",
        f"| labels | {', '.join(f'`{label}`' for label in sft.labels) or 'none'} |",
        "",
        "## How to load it",
        "",
        "```python",
        f"from ltsft import composed, load_base, load_sft{', model_of' if sft.kind == 'task' else ''}",
        "",
        f"base = load_base({sft.base.id!r}, revision={sft.base.revision!r})",
        'sft = load_sft("path/to/this/folder")',
        f"model = {'model_of(base, sft)' if sft.kind == 'task' else 'base.masked_lm()'}",
        "with composed(model, [(sft, 1.0)], base=base.ref):",
        "    ...  # the model is base + SFT here, and the base again afterwards",
        "```",
        "",
    ]
    return "\n".join(lines)


_LOTTERY_TICKET = (
    "SFT stands for sparse fine-tuning: a sparse difference to the weights of a pretrained base (Lottery-Ticket",
    "SFT, Ansell et al., ACL 2022). It is used by adding it to its base, with other SFTs of the same base.",
)


def _sparsity(sft: SFT) -> list[str]:
    return [
        f"| support | {sft.support_size:,} of {sft.maskable:,} maskable weights |",
        f"| density | {sft.density:.6g} |",
    ]


def _numerics(sft: SFT) -> list[str]:
    """Say what it was computed in, where that is on record."""
    stretches = numerics_of(sft.details)
    if not stretches:
        return []
    said = summarise([stretch.model_copy(update={"precision": WORDS[stretch.precision]}) for stretch in stretches])
    recipe = sft.details.get("recipe")
    asked = WORDS.get(str(recipe.get("precision"))) if isinstance(recipe, Mapping) else None
    other = f" (the recipe asks for {asked})" if asked and asked != said["precision"] else ""
    rest = f"{said['threads']} threads, {said['device']} ({said['instructions']}), torch {said['torch']}"
    return [f"| computed in | {said['precision']}{other}, {rest} |"]


def _other_method(sft: SFT, learnt_by: str) -> list[str]:
    """Say what is stored if it is not what LT-SFT stores."""
    return [f"It was learnt by the method `{sft.method}`{f': {learnt_by}' if learnt_by else ''}."]
