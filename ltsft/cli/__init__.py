"""The `ltsft` command: the one package above the flows."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
