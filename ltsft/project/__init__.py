"""The project file as a whole, and the plan: what of it is up to date, and what is not, and why."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
