"""Prefect tasks: with which service."""
