"""Run every benchmark, each in a process of its own: `python -m benchmarks [--quick] [NAME ...]`."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import NAMES


def run_all(names: list[str], *, quick: bool) -> int:
    """Run benchmarks one after the other; give the number of those that failed to run (a missed goal is a result)."""
    failed = 0
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
        failed += subprocess.run(command, check=False).returncode != 0
        print(flush=True)
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="a small size of each")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of them if none is given: {', '.join(NAMES)}")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    sys.exit(run_all(options.names or list(NAMES), quick=options.quick))
