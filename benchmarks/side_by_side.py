"""What the side-by-side programs share: every variant in a process of its own, repeats alternated.

A program measures one variant with `measure` when called with `--variant`; without, `compare` starts it once
a variant and repeat, in alternated order. Peak memory is what the kernel counts as resident (Linux).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Step = Callable[[], dict[str, float]]
"""Runs once what is measured; what it returns is reported beside time and memory."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, help="processes of each variant")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a process")
    parser.add_argument("--json", type=Path, help="also write every row to this file of JSON lines")
    parser.add_argument("--variant", help=argparse.SUPPRESS)


def measure(step: Step, *, times: int) -> dict[str, float]:
    """Run `step` once to warm up and `times` times more; return the median seconds and the peaks in MiB.

    `peak_mib` is beyond what was resident before the first step: afterwards the allocator keeps what a step
    freed, and gradients and optimiser states stay.
    """
    before = reset_peak()
    step()
    reset_peak()
    seconds, values = [], {}
    for _ in range(times):
        started = time.perf_counter()
        values = step()
        seconds.append(time.perf_counter() - started)
    highest = peak()
    memory = {"peak_mib": (highest - before) / 2**20, "resident_mib": highest / 2**20}
    return {"seconds": statistics.median(seconds), **memory, **values}


def reset_peak() -> int:
    """Forget the highest resident memory so far; return the present one in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the highest resident memory in bytes since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def compare(variants: Sequence[str], options: argparse.Namespace, *arguments: str) -> list[dict[str, Any]]:
    """Run this program once a variant and repeat; return a row a variant: medians, lowest and highest."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    for number in range(options.repeats):
        for name in variants if number % 2 == 0 else reversed(variants):
            command = [sys.executable, sys.argv[0], "--variant", name, *arguments]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = [
        {
            "variant": name,
            **{key: statistics.median(one[key] for one in repeats) for key in repeats[0]},
            "ranges": {
                key: [min(one[key] for one in repeats), max(one[key] for one in repeats)]
                for key in repeats[0]
            },
        }
        for name, repeats in found.items()
    ]
    add_json_lines(options.json, [{**row, "arguments": arguments} for row in rows])
    return rows


def add_json_lines(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows to a file of JSON lines, if there is one."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Return rows as Markdown; `columns` is the format of each value, whose range follows in brackets."""
    lines = [f"| variant | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for row in rows:
        cells = [
            f"{row[key]:{form}} ({low:{form}} to {high:{form}})"
            for key, form in columns.items()
            for low, high in [row["ranges"][key]]
        ]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """Return one line about processor, threads and versions."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}"
