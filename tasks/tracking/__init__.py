"""The record in MLflow: what exists, under which key, and how a run is written."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
