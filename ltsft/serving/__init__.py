"""Serving: many released compositions over one resident base, and the HTTP service in front of them."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
