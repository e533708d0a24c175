"""One composition without a server: loaded once, and asked row by row. What a logged model of MLflow is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltsft.base import Base, load_base
from ltsft.release import Release, ReleaseSource, parse_composition
from ltsft.serving.answers import Input
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits

__all__ = ["OfflineModel"]


class OfflineModel:
    """A composition that answers rows of a table.

    Args:
        base: the base.
        release: what to compose.
        source: where its SFTs come from.
        limits: how long texts are treated; what a server allows, without it.

    Raises:
        ReleaseError: it belongs to another base, or an SFT is not the one that was released.
        SFTFileError: an SFT is damaged.
        ServiceError: the source is away.
    """

    def __init__(self, base: Base, release: Release, source: ReleaseSource, limits: Limits | None = None) -> None:
        self._engine = Engine(base, limits=limits or Limits())
        self._admitted = self._engine.admit(release, source)

    @classmethod
    def load(cls, recipe: Path, source: ReleaseSource, *, location: str | None = None) -> OfflineModel:
        """Load the composition that a file describes.

        Args:
            recipe: the file.
            source: where its SFTs come from.
            location: where the base is: a folder or a hub id; where the recipe says, without it.
        """
        composition = parse_composition(recipe.read_bytes(), place=str(recipe))
        place = location or composition.base.location
        base = load_base(place, None if Path(place).is_dir() else composition.base.revision)
        return cls(base, Release(0, composition), source)

    @property
    def forms(self) -> tuple[str, ...]:
        """What a row may be, see `Input.form`."""
        return self._admitted.reader.forms

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer rows, each by name what a request holds: ``text``, ``words``, ``pair``, ``question``, ``context``.

        Returns:
            For each row the columns that the reader's `outputs` name.

        Raises:
            OtherFormError: a row is of another form than the target task takes.
            RefusedInputError: a row has no words or is too long.
        """
        reader = self._admitted.reader
        prepared = [reader.prepare(Input.of(row)) for row in rows]
        outputs = iter(self._engine.run(self._admitted, [piece for one in prepared for piece in one.pieces]))
        return [reader.read(one, [next(outputs) for _ in one.pieces]).columns() for one in prepared]
