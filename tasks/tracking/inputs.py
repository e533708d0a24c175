"""What a product is learnt or scored from, as the data sets that MLflow shows in the column Datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ltsft.config import Source
from ltsft.data import fingerprint
from ltsft.project import Product, Project

_DIGEST_LENGTH = 32  # MLflow keeps 36 characters


@dataclass(frozen=True)
class DataInput:
    """Data that a run reads.

    Attributes:
        name: such as ``fo text`` or ``pos en train``.
        digest: the first 32 hexadecimal digits of its fingerprint; of several files, of the hash of all of theirs.
        sources: where it is.
        context: "training", "validation" (chooses the best checkpoint) or "evaluation".
    """

    name: str
    digest: str
    sources: tuple[str, ...]
    context: str


def inputs_of(project: Project, product: Product) -> list[DataInput]:
    """Give the data that a product reads itself; what its parents read is theirs."""
    if product.kind == "language":
        return [_input(f"{product.language} text", project.languages[product.language].text, "training")]
    target = project.target_tasks[str(product.target_task)]
    if product.kind == "cell":
        return [_input(f"{target.name} {product.language} test", target.test[product.language], "evaluation")]
    return [
        _input(f"{target.name} {code} {split}", sources, context)
        for code, data in target.labelled(product.language).items()
        for split, sources, context in (("train", data.train, "training"), ("dev", data.dev, "validation"))
        if sources
    ]


def _input(name: str, sources: Iterable[Source], context: str) -> DataInput:
    sources = tuple(sources)
    prints = [fingerprint(source) for source in sources]
    digest = prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()
    return DataInput(name, digest[:_DIGEST_LENGTH], tuple(map(str, sources)), context)
