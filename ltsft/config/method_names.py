"""The method that is meant where none is named. In a file of its own: the project file and the SFT both name it."""

from __future__ import annotations

LT_SFT = "lt_sft"
"""The method of the paper. Keys and files of its SFTs do not name it: they are older than the rest."""
