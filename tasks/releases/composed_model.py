"""The MLflow flavour: a pyfunc model from code that composes when it is loaded. MLflow runs this file, never a pickle.

The logged model is this file and a recipe; base and SFTs are fetched by whoever loads it, from where the recipe says:
the base by its hub id or folder (``LTSFT_BASE`` names another place), the SFTs from the MLflow that the model came
from. What is loaded is checked against the hashes in the recipe. A copy of this file lives as long as the model: from
us it imports `ltsft` alone, whose names stay.

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

from ltsft import ComposedPart, OfflineModel, RefusedInputError, Release, ServiceError, Slot


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
        recipe = Path(context.artifacts["composition"])
        self._model = OfflineModel.load(recipe, _CurrentMlflow(), location=os.environ.get("LTSFT_BASE"))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer texts.

        Args:
            context: not used.
            model_input: a row a text; the signature says in which columns.
            params: not used.

        Returns:
            A row a text, with the columns of the signature.

        Raises:
            RefusedInputError: none of the columns is there (MLflow leaves out those that the signature does not name).
        """
        if not len(model_input.columns):
            raise RefusedInputError(f"a row needs {' or '.join(self._model.forms)}")
        rows: list[dict[Any, Any]] = model_input.to_dict(orient="records")
        return pd.DataFrame(self._model.answer(rows))


set_model(ComposedModel())
