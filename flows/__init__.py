"""Prefect flows: in which order."""
