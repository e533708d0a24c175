"""What is released, by which gates, and what leaves the house."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
