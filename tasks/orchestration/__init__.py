"""Prefect and the cluster: how flows are started, watched, told of and stopped."""

from ltsft.faces import face

__getattr__, __dir__, __all__ = face(__name__, __file__)
