"""The SFT, and its folder: what is learnt, written so that nobody sees half of it, and read with every check first."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
