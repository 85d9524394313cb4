"""How long the default study takes, and how much memory, with all its processes.

    uv run python benchmarks/study_cost.py ../shared/data/blood-cells --out runs/blood-cells

Runs `leuko compare` as a user would; further words go to it. Prints minutes from the start of the
program to its end, and the largest sum of the memory of all processes, looked at twice a second:
proportional set sizes, which divide shared pages among those who share them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from audit import list_family, read_memory


def main(words: list[str]) -> None:
    load, began, peak = os.getloadavg()[0], time.perf_counter(), 0.0
    study = subprocess.Popen([Path(sys.executable).with_name("leuko"), "compare", *words])
    while study.poll() is None:
        peak = max(peak, sum(map(read_memory, list_family(study.pid))))
        time.sleep(0.5)
    minutes = (time.perf_counter() - began) / 60
    if study.returncode:
        raise SystemExit(f"leuko compare ended with {study.returncode}.")
    print(
        f"leuko compare {' '.join(words)}: {minutes:.1f} minutes, {peak:,.0f} MiB at the peak, all "
        f"processes together; load of the machine before: {load:.1f}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
