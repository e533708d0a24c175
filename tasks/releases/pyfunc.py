"""Compositions as models that MLflow's own tools load: written from code, with nothing pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ltsft


def save_pyfunc(
    folder: Path,
    *,
    code: Path,
    artifacts: Mapping[str, str],
    example: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    """Write a pyfunc model from code into a folder, to be logged; nothing is pickled, and nothing is loaded.

    Args:
        folder: to write; must not exist.
        code: the file that MLflow runs when the model is loaded; a copy goes into the model.
        artifacts: files that go into the model, by the names that the code knows them by.
        example: rows of an input example.
        inputs: columns of what it takes, each with its type, as `ltsft.serving.answers.Reader` has them.
        outputs: columns of what it gives, likewise.
        metadata: shown with the model.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    taken = Schema([ColSpec(_column_type(of), name, required=False) for name, of in inputs.items()])
    given = Schema([ColSpec(_column_type(of), name) for name, of in outputs.items()])
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(code),
        artifacts=dict(artifacts),
        signature=ModelSignature(taken, given),
        input_example=pd.DataFrame(list(example)),
        pip_requirements=[f"ltsft=={ltsft.__version__}"],
        metadata=dict(metadata),
    )


def predict_rows(uri: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Load a model as any user of MLflow would and have it answer rows; gives a row of plain values for each."""
    import mlflow.pyfunc
    import pandas as pd

    model = mlflow.pyfunc.load_model(uri)
    found: list[dict[str, Any]] = model.predict(pd.DataFrame(list(rows))).to_dict(orient="records")
    return found


def _column_type(of: Any) -> Any:
    """Give MLflow's type of a column from `str`, `int`, `float`, ``[type]`` or ``{name: type}``."""
    from mlflow.types.schema import Array, DataType, Object, Property

    if isinstance(of, list):
        return Array(_column_type(of[0]))
    if isinstance(of, dict):
        return Object([Property(name, _column_type(kind)) for name, kind in of.items()])
    return {str: DataType.string, int: DataType.long, float: DataType.double}[of]
