"""From a named source to rows, and what is measured of them."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
