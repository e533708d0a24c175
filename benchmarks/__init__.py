"""What is measured and how: each module is `python -m benchmarks.NAME`, prints a table and, last, one line of JSON.

`python -m benchmarks` runs all of them, each in a process of its own. docs/performance.md explains the figures.
"""

NAMES: tuple[str, ...] = ("language_step", "task_step", "corpus", "gpu")
"""The benchmarks."""
