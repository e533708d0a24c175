"""Training as tasks: by one process, by several, and by several nodes."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
