"""Releases as tasks: put forward, judged, moved, rolled back, exported and served."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
