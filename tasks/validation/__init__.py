"""The validation gate: data is measured, judged by Great Expectations, and stopped where it fails."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
