"""Base and SFTs put together: in memory, in place, or as an ordinary folder."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
