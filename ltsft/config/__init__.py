"""What a project file may say: frozen objects that check themselves, and pydantic alone."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
