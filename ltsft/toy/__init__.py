"""The artificial family of languages, and the small base that has read some of them."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
