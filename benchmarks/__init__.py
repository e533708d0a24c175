"""What is measured and how: each module is `python -m benchmarks.NAME`, prints a table and, last, one line of JSON.

`python -m benchmarks` runs all of them, each in a process of its own. docs/performance.md explains the figures.
"""

NAMES: tuple[str, ...] = (
    "commands",
    "composition",
    "corpus",
    "gpu",
    "inference",
    "language_step",
    "matrix",
    "plan",
    "selection",
    "serving",
    "storage",
    "task_step",
)
"""The benchmarks."""
