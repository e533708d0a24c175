"""Densities, methods and weights beside each other: what was scored, as tables and plots."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
