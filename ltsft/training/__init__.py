"""Learning an SFT: full phase, selection, rewind, sparse phase."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
