"""Sparse fine-tuning of multilingual encoders: learn, store, compose and measure SFTs.

What is here stays: logged models, exported folders and the cards of SFTs import it from here.
"""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
