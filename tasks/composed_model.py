"""The MLflow flavour: a pyfunc model from code that composes when it is loaded. MLflow runs this file, never a pickle.

The logged model is this file and a recipe; base and SFTs are fetched by whoever loads it, from where the recipe says:
the base by its hub id or folder (``LTSFT_BASE`` names another place), the SFTs from the MLflow that the model came
from. What is loaded is checked against the hashes in the recipe.

    model = mlflow.pyfunc.load_model("models:/ud.pos.fo@champion")
    model.predict(pandas.DataFrame({"text": ["Hetta er ein roynd."]}))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.artifacts import download_artifacts
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from ltsft.base import load_base
from ltsft.errors import ServiceError
from ltsft.release import ComposedPart, Release, Slot, parse_composition
from ltsft.serving.answers import Input
from ltsft.serving.engine import Admitted, Engine
from ltsft.serving.limits import Limits


class _CurrentMlflow:
    """The MLflow that the caller uses."""

    def live(self) -> dict[Slot, Release]:
        """Nothing: the caller has chosen a version."""
        return {}

    def fetch(self, part: ComposedPart) -> Path:
        """Fetch the folder of an SFT from the run that made it."""
        try:
            return Path(download_artifacts(run_id=part.run_id, artifact_path="sft"))
        except Exception as error:
            raise ServiceError(f"MLflow could not give {part.subject} of run {part.run_id}: {error}") from error


class ComposedModel(PythonModel):
    """Base + SFTs, composed once."""

    def load_context(self, context: Any) -> None:
        """Fetch, check and compose."""
        file = Path(context.artifacts["composition"])
        composition = parse_composition(file.read_bytes(), place=str(file))
        location = os.environ.get("LTSFT_BASE") or composition.base.location
        base = load_base(location, None if Path(location).is_dir() else composition.base.revision)
        self._engine = Engine(base, limits=Limits())
        self._admitted: Admitted = self._engine.admit(Release(0, composition), _CurrentMlflow())

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer texts.

        Args:
            context: not used.
            model_input: a row a text, in the column ``text``, or ``words`` with a list of words.
            params: not used.

        Returns:
            A row a text: ``words``, ``labels`` and ``scores``, equally long.
        """
        prepared = [self._admitted.reader.prepare(_input(row)) for row in model_input.to_dict(orient="records")]
        pieces = [piece for text in prepared for piece in text.pieces]
        logits = iter(self._engine.run(self._admitted, pieces))
        answers = [self._admitted.reader.read(text, [next(logits) for _ in text.pieces]) for text in prepared]
        return pd.DataFrame(
            {
                "words": [[word.text for word in answer] for answer in answers],
                "labels": [[word.label for word in answer] for answer in answers],
                "scores": [[word.score for word in answer] for answer in answers],
            }
        )


def _input(row: dict[Any, Any]) -> Input:
    words, text = row.get("words"), row.get("text")
    if words is not None and not isinstance(words, float):
        return Input(words=tuple(map(str, words)))
    return Input(text=str(text))


set_model(ComposedModel())
