"""What is learnt: rows become batches, with which head, loss and score.

One file for each objective, one line in `registry`.
"""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
