"""Time and peak memory of the loss head beside TRL 1.16, Liger 0.8.5 and the public DistiLLM-2 loss.

    python benchmarks/loss_head.py --repeats 5 --threads 1 --output runs/loss_head

runs on a CPU, needs Linux and `pip install "vlm-distill[bench]"`. Every variant of a scenario has a process
of its own; their repeats alternate. A repeat is a forward and a backward from hidden states to the gradients
of hidden states and, unless frozen, of the output layer. Peak memory is what the process's resident memory
grows by beyond its start (VmHWM after writing 5 to /proc/self/clear_refs), gradients included. Before, one
repeat is checked against full logits in float64. Rows go to OUTPUT/loss_head.jsonl, a Markdown table to
standard output.

Each peer gets what its trainer passes: TRL's chunked divergence the completion window, its GKD loss and Liger
the whole sequences; `liger_valid` is Liger on response tokens only. `ours_N` is ours at a budget of N MiB.
Ratios in the table are to the peer without a suffix: TRL's chunked divergence or the dense DistiLLM-2.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loss_head_variants import (
    READS_PROMPTS,
    Inputs,
    Scenario,
    errors,
    oracle,
    read_inputs,
    step_of,
    write_weights,
)
from side_by_side import peak, reset_peak

TEXT: dict[str, Any] = {"prompt": 80, "lengths": (48, 48)}
IMAGE: dict[str, Any] = {"prompt": 608, "lengths": (32,)}
CURVE = ("ours_12", "ours_24", "ours_48", "ours_96", "ours_256")
SCENARIOS: list[tuple[Scenario, tuple[str, ...]]] = [
    (Scenario(name="text", loss="kl", **TEXT), (*CURVE, "trl_chunked", "trl_gkd", "liger", "liger_valid")),
    (Scenario(name="text", loss="jsd", **TEXT), (*CURVE, "trl_chunked", "trl_gkd", "liger_valid")),
    (Scenario(name="text", loss="distillm2", **TEXT), (*CURVE, "dense_distillm2", "dense_distillm2_probs")),
    (Scenario(name="image", loss="kl", **IMAGE), ("ours_24", "ours_256", "trl_chunked", "liger_valid")),
    (Scenario(name="image", loss="jsd", **IMAGE), ("ours_24", "ours_256", "trl_chunked", "liger_valid")),
    (Scenario(name="text, frozen", loss="kl", frozen=True, **TEXT), ("ours_48", "ours_256", "trl_chunked")),
    (Scenario(name="text, frozen", loss="jsd", frozen=True, **TEXT), ("ours_48", "ours_256", "trl_chunked")),
    (
        Scenario(name="text, 50 % padding", loss="kl", prompt=80, lengths=(64, 16, 16)),
        ("ours_256", "trl_chunked"),
    ),
    (
        Scenario(name="text, 75 % padding", loss="kl", prompt=80, lengths=(64, 7, 7, 6, 6, 6)),
        ("ours_256", "trl_chunked"),
    ),
    (
        Scenario(name="text, bfloat16", loss="kl", dtype="bfloat16", **TEXT),
        ("ours_48", "ours_256", "trl_chunked"),
    ),
    *[
        (Scenario(name=f"{num} image tokens", loss="kl", prompt=num, lengths=(32,)), ("ours_256",))
        for num in (64, 576, 2048)
    ],
]
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-3}
MEASURED = ("seconds", "cpu_seconds", "peak_mib")
PEER = ("trl_chunked", "dense_distillm2")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one repeat, ours_256 and the first peer only")
    parser.add_argument("--only", default="", help="scenarios whose name and loss contain this")
    parser.add_argument("--output", type=Path, default=Path("runs/loss_head"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(**json.loads(options.worker))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    repeats = 1 if options.quick else options.repeats
    rows = []
    with tempfile.TemporaryDirectory(dir=options.output) as folder:
        torch.set_num_threads(options.threads)
        write_weights(Path(folder))
        for scenario, variants in SCENARIOS:
            if options.only not in f"{scenario.name} {scenario.loss}":
                continue
            if options.quick:
                variants = tuple(name for name in variants if name in ("ours_256", *PEER))
            found = measure(scenario, variants, folder=Path(folder), repeats=repeats, threads=options.threads)
            rows += found
            with (options.output / "loss_head.jsonl").open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in found)
            print(f"{scenario.name}, {scenario.loss}: done", file=sys.stderr, flush=True)
    print(table(rows))


def measure(
    scenario: Scenario, variants: Sequence[str], *, folder: Path, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Return one row per variant, each from a process of its own, their repeats alternated."""
    torch.save(oracle(read_inputs(folder, scenario, whole=False), scenario), folder / "oracle.pt")
    rows = []
    workers = []
    for variant in variants:
        job = {"variant": variant, "scenario": asdict(scenario), "folder": str(folder), "threads": threads}
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        worker = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        workers.append(worker)
        rows.append(
            {
                "scenario": scenario.name,
                "loss": scenario.loss,
                "variant": variant,
                "threads": threads,
                **_ask(worker),
                **{name: [] for name in MEASURED},
            }
        )
    for _ in range(repeats):
        for row, worker in zip(rows, workers, strict=True):
            answer = _ask(worker)
            for name in MEASURED:
                row[name].append(answer[name])
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return rows


def _ask(worker: "subprocess.Popen[str]") -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line.startswith("{"):
        raise SystemExit(f"a worker ended with code {worker.wait()}: {line}{worker.stdout.read()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def work(*, variant: str, scenario: dict[str, Any], folder: str, threads: int) -> None:
    """Answer every line of standard input, the first with a check of the gradients, then with repeats."""
    torch.set_num_threads(threads)
    case = Scenario(**(scenario | {"lengths": tuple(scenario["lengths"])}))
    inputs = read_inputs(Path(folder), case, whole=variant in READS_PROMPTS)
    step = step_of(variant)
    sys.stdin.readline()
    loss = step(inputs, case)
    loss.backward()
    found = errors(inputs, case, loss, torch.load(Path(folder) / "oracle.pt"))
    if max(found.values()) > TOLERANCE[case.dtype]:
        raise SystemExit(f"{variant} on {case}: relative errors {found}")
    del loss
    print(json.dumps({"relative_errors": found}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(one_repeat(step, inputs, case)), flush=True)


def one_repeat(step: Any, inputs: Inputs, scenario: Scenario) -> dict[str, float]:
    inputs.hidden.grad = inputs.weight.grad = None
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    step(inputs, scenario).backward()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": (peak() - before) / 2**20}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; ratios are those of the scenario's peer to the row."""
    lines = [
        "| scenario | loss | variant | peak MiB | s, median (range) | CPU s | less memory | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = [r for r in rows if (r["scenario"], r["loss"]) == (row["scenario"], row["loss"])]
        peer = next((r for r in same if r["variant"] in PEER), None)
        memory, seconds = statistics.median(row["peak_mib"]), statistics.median(row["seconds"])
        ratios = ["", ""]
        if peer is not None and peer is not row:
            ratios[0] = f"{statistics.median(peer['peak_mib']) / memory:.2f} x"
            ratios[1] = f"{statistics.median(peer['seconds']) / seconds:.2f} x"
        span = f"{min(row['seconds']):.2f}-{max(row['seconds']):.2f}"
        cells = [row["scenario"], row["loss"], row["variant"], f"{memory:.0f}", f"{seconds:.2f} ({span})"]
        cells += [f"{statistics.median(row['cpu_seconds']):.2f}", *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
