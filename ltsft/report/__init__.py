"""Tables, plots and the page: what people are shown of the matrix."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
