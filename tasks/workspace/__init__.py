"""What the tasks of a flow run work with: the project, its base, its record and its folders."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
