"""How an SFT is learnt: which weights it may train, in which phases.

One file for each method, one line in `registry`.
"""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
