"""Text of new languages that somebody put into the bucket: noticed, and announced."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
