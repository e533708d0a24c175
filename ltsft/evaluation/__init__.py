"""Scores of cells, interference between SFTs, the matrix, and how sure one may be of a difference."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
