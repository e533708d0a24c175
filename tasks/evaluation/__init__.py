"""The matrix and the experiments as tasks."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
