"""What a checkout computes, as hashes: proves that a redesign of the code changes no result.

    python tests/identity.py CHECKOUT [--configs FOLDER] [--jobs NAME ...] [--parallel N] [--output FILE.json]
                             [--folder WORK]
    python tests/identity.py --compare BEFORE.json AFTER.json

Tiny jobs run through the command line of CHECKOUT; of all that they leave behind one hash per artefact is
printed, by value: responses, weights, rows of metrics, scores, teacher caches, settings of models. Left out
is what depends on time (seconds, tokens per second, the report) and what has a meaning inside a folder only
(keys of stages, hashes of settings, checksums). Compare hashes of one machine and one environment: another
torch or processor adds up in another order. Nothing is imported from the package, so modules may move; and
where shipped configs change on purpose, `--configs` gives both sides those of one checkout.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from identity_inputs import write_given
from safetensors import safe_open

Hashes = dict[str, str]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}

# The jobs.

Command = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Command lines, one after the other; `{given}` and `{made}` stand for folders.

    The first one is killed as soon as the file `kill_at` is there and started again.
    """

    commands: tuple[Command, ...]
    num_processes: int = 1
    kill_at: str | None = None


def command(family: str, *overrides: str, verb: str = "run") -> Command:
    return verb, f"{{given}}/{family}.yaml", "output={made}/run", *overrides


def run(family: str, *overrides: str, **settings: Any) -> Job:
    return Job(commands=(command(family, *overrides),), **settings)


def cached(family: str, *overrides: str, **settings: Any) -> Job:
    """Return a job that fills the cache of the teacher's responses before it runs."""
    verbs = (command(family, *overrides, verb=verb) for verb in ("cache", "run"))
    return Job(commands=tuple(verbs), **settings)


def controls(**objectives: str) -> str:
    listed = (f"{{name: {name}, objective: {{{objective}}}}}" for name, objective in objectives.items())
    return f"controls=[{', '.join(listed)}]"


def both_stages(setting: str) -> tuple[str, str]:
    return f"train.{setting}", f"warmup.train.{setting}"


FROZEN = both_stages("trainable={vision: frozen}")
LONG = (*FROZEN, "rounds=2", controls(seqkd="kind: seqkd"))
CHECKPOINTING = both_stages("gradient_checkpointing=true")
SAVED = ("export", "{made}/run", "{made}/export", "--dtype", "bfloat16")
NO_TEACHER = ("teacher=null", "rounds=0", "objective=null", "train=null")
OWN_TOWER = "{image_size: 64, patch_size: 16, width: 16, layers: 1, heads: 2}"
OWN_STUDENT = (f"student.build.vision={OWN_TOWER}", "student.build.tokenizer={train: {vocab_size: 300}}")
OTHERS = controls(
    seqkd="kind: seqkd",
    kd_jensen_shannon="kind: kd, divergence: {kind: jensen_shannon}",
    imitkd="kind: imitkd",
    distillm="kind: distillm, margin: 0.0",
    on_policy="kind: on_policy_kd",
    on_policy_sampled="kind: on_policy_kd, form: sampled",
    released="kind: distillm2, preset: released",
)
AUGMENTED = "warmup.augment={flip: true, transpose: true, shift: 3}"
EASY_VQA = ("--suite", "easy_vqa", "--limit", "60", "--shuffle-images", "--device", "cpu")
SMOKE = (
    "data.limit=256",
    "warmup.train.epochs=2",  # a student that stops at once has nothing to be compared by
    "train.epochs=1",
    "evaluate.limit=60",
    "evaluate.agreement_examples=20",
)
JOBS: dict[str, Job] = {
    "easy_vqa_smoke": Job(
        commands=(("run", "{given}/configs/easy_vqa_smoke.yaml", "output={made}/run", "device=cpu", *SMOKE),)
    ),
    "undisturbed": run("llava", *LONG),
    "resumed": run("llava", *LONG, kill_at="run/round_1/stage.json"),
    "two_processes": run("llava", *LONG, num_processes=2),
    "two_processes_cached": cached("text", "cache={tier: hidden}", "objective={kind: kd}", num_processes=2),
    "vision_cache_off": run("llava", *FROZEN, "vision_cache={memory_gib: 0, disk_gib: 0}"),
    "kd": run("llava", FROZEN[1], "objective={kind: kd}", "train.evaluate_every=1", "train.patience=1"),
    "gkd": run("llava", *FROZEN, "objective={kind: gkd, on_policy: 0.5}", "rounds=2"),
    "taid": run("text", "objective={kind: taid}", "rounds=2"),
    "dpo": run("llava", *FROZEN, "objective={kind: dpo}", "rounds=2"),
    "simper": run("qwen", "objective={kind: simper}"),
    "other_methods": run("text", "objective={kind: kd}", "train.evaluate_every=2", OTHERS),
    "cache_hidden": cached("llava", *FROZEN, "cache={tier: hidden}", "rounds=2"),
    "cache_bfloat16": cached("qwen", "cache={tier: hidden, dtype: bfloat16}", "objective={kind: taid}"),
    "cache_top_k": cached("text", "cache={tier: top_k, k: 16}"),
    "cache_sampled": cached("text", "cache={tier: sampled}", "objective={kind: dpo, reference: teacher}"),
    "lora": run("llava", *both_stages("trainable={vision: frozen, language: {kind: lora, dropout: 0.1}}")),
    "dora": run("text", "train.trainable={language: {kind: lora, rank: 4, dora: true}}"),
    "text": Job(commands=(command("text", "generate.sampling.num_samples=2"), SAVED)),
    "text_checkpointing": run("text", *CHECKPOINTING),
    "text_mechanics": run(
        "text", "train.micro_batch_size=null", "train.micro_batch_tokens=160", "train.group_by_length=true"
    ),
    "text_bf16": run("text", *both_stages("precision=bf16")),
    "qwen": Job(commands=(command("qwen", "warmup.objective={kind: kd}", "warmup.augment.shift=3"), SAVED)),
    "qwen_checkpointing": run("qwen", *CHECKPOINTING),
    "labels": run("llava", *NO_TEACHER, *OWN_STUDENT, "warmup.objective={kind: sft}", AUGMENTED),
    "eval": Job(commands=(("eval", "bundled:easy_vqa_teacher", "--output", "{made}/eval", *EASY_VQA),)),
}
FAILED = "failed"
# What a kill changes: nothing.
EQUAL = (("undisturbed", "resumed"),)


def run_job(job: Job, checkout: Path, given: Path, made: Path) -> Hashes:
    made.mkdir(parents=True)
    with (made.parent / f"{made.name}.log").open("w+") as log:
        for number, arguments in enumerate(job.commands):
            full = [one.replace("{given}", str(given)).replace("{made}", str(made)) for one in arguments]
            start = partial(subprocess.Popen, launch(job, full), stdout=log, stderr=log, cwd=checkout)
            start = partial(start, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(checkout)})
            if job.kill_at and number == 0:
                kill(start(), made / job.kill_at)
            if start().wait() != 0:
                log.seek(0)
                raise RuntimeError(f"{' '.join(full)}:\n{log.read()[-3000:]}")
    return artefacts(made, {str(made): "{made}", str(given): "{given}"})


def launch(job: Job, arguments: list[str]) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.num_processes}"]
    return [sys.executable, *(launcher if job.num_processes > 1 else []), "-m", "vlm_distill.cli", *arguments]


def kill(process: subprocess.Popen[Any], moment: Path) -> None:
    while not moment.exists():
        if process.poll() is not None:
            raise RuntimeError(f"ended before {moment} was there")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("ended before it was killed")


# The artefacts, by value.

COLUMNS_OF_RESPONSES = (
    *("id", "example_id", "author", "round", "sample_index", "text", "token_ids", "finish"),
    *("token_log_probs", "reencoded", "model_fingerprint"),
)
# Pictures are copies, features are flushed now and then, and a cache is read by response; which process
# noted a dropped response is a matter of chance, and they are counted in another file.
SKIPPED_FOLDERS = ("images", "vision_features", "checkpoints", "cache")
SKIPPED_FILES = (
    "manifest.json",
    "dropped.json",
    "report.html",
    ".lock",
    "stages.json",
    "config.yaml",
    "README.md",
    "summary.md",
)
# Times, versions, and what identifies settings inside of a folder; which engine wrote, in whatever form.
SKIPPED_KEYS = re.compile(
    r"seconds|tokens_per_second|packages|python|machine|key|checksum|samples_sha256|.*_hash|format|engines?"
)
# Names that stood for one number in several files.
ONE_NAME = {"answers": "same_answer"}


def artefacts(made: Path, names: Mapping[str, str]) -> Hashes:
    """Return the hash of every artefact below `made`, by a name that says where it is."""
    found: Hashes = {}
    for folder, below, files in os.walk(made):
        where, path = Path(folder).relative_to(made), Path(folder)
        if "cache" in below:
            found |= {f"{where}/cache/{name}": value for name, value in cache_hashes(path / "cache")}
        below[:] = sorted(set(below) - set(SKIPPED_FOLDERS))
        found |= {f"{where}/{name}": value for name, value in folder_hashes(path, sorted(files), names)}
    return found


def folder_hashes(folder: Path, files: list[str], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if tables := [folder / name for name in files if name.endswith(".parquet")]:
        yield "responses", hash_value(responses(tables))
    if weights := [folder / name for name in files if name.endswith(".safetensors")]:
        tensors = {name: value for path in weights for name, value in read_tensors(path).items()}
        yield "tensors", hash_value({name: layout(value) for name, value in tensors.items()})
        yield "weights", hash_tensors(tensors)
    for name in files:
        if name not in SKIPPED_FILES and not name.endswith((".parquet", ".safetensors")):
            # A key in a name identifies settings too.
            yield re.sub(r"_[0-9a-f]{16}\b", "", name), hash_value(file_value(folder / name, names))


def responses(tables: list[Path]) -> list[Any]:
    rows = [row for path in tables for row in pyarrow.parquet.read_table(path).to_pylist()]
    kept = [[row[name] for name in COLUMNS_OF_RESPONSES] for row in rows]
    return sorted(kept, key=lambda row: row[0])


def file_value(path: Path, names: Mapping[str, str]) -> Any:
    text = path.read_text(encoding="utf-8")
    for full, short in names.items():
        text = text.replace(full, short)
    if path.suffix == ".json":
        return values(json.loads(text))
    return [values(json.loads(line)) for line in text.splitlines()] if path.suffix == ".jsonl" else text


def values(found: Any) -> Any:
    """Return JSON without what depends on time and without what identifies settings."""
    if isinstance(found, dict):
        kept = {name: value for name, value in found.items() if not SKIPPED_KEYS.fullmatch(name)}
        return {ONE_NAME.get(name, name): values(value) for name, value in kept.items()}
    return [values(value) for value in found] if isinstance(found, list) else found


def cache_hashes(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield a hash per set of responses: rows by response, however they are spread over shards."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        rows: dict[str, torch.Tensor] = {}
        for shard in sorted(part.rglob("*.safetensors")):
            rows |= cache_rows(shard)
        yield part.name, hash_tensors(rows)


def cache_rows(shard: Path) -> dict[str, torch.Tensor]:
    with safe_open(shard, framework="pt") as handle:
        listed = json.loads(handle.metadata()["rows"])
    tensors, rows, start = read_tensors(shard), {}, 0
    for response_id, *_, count in listed:
        rows |= {f"{response_id} {name}": value[start : start + count] for name, value in tensors.items()}
        start += count
    return rows


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def layout(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.dtype), list(tensor.shape)]


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(json.dumps([name, *layout(value)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def hash_value(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# The command line.


def hashes_of(name: str, checkout: Path, work: Path) -> Hashes:
    started = time.monotonic()
    try:
        found = run_job(JOBS[name], checkout, work / "given", work / "made" / name)
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        found = {FAILED: str(error).splitlines()[-1]}
    print("".join(f"{name} {what} {value}\n" for what, value in found.items()), end="", flush=True)
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def all_hashes(checkout: Path, work: Path, names: Iterable[str], *, parallel: int) -> dict[str, Hashes]:
    """Run the jobs on what lies in `given` below `work`; print their hashes as they come."""
    with ThreadPoolExecutor(parallel) as pool:
        found = pool.map(lambda name: hashes_of(name, checkout, work), names)
        return dict(zip(names, found, strict=True))


def differences(before: Hashes, after: Hashes) -> list[str]:
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{name}: {before.get(name, 'absent')} {after.get(name, 'absent')}" for name in names]


def compare(before: dict[str, Hashes], after: dict[str, Hashes]) -> list[str]:
    """Return what differs in the jobs of `after`, which may be some of those of `before`."""
    print("".join(f"not compared: {job}\n" for job in sorted(before.keys() - after.keys())), end="")
    found = [f"{job} {line}" for job in after for line in differences(before.get(job, {}), after[job])]
    compared = sum(len(hashes) for hashes in after.values())
    print(f"{len(after)} jobs, {compared} artefacts, {len(found)} of them differ")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", nargs="?", type=Path, help="the folder that has vlm_distill/")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--configs", type=Path, help="the shipped configs; default: those of the checkout")
    parser.add_argument("--jobs", nargs="+", choices=[*JOBS], default=[*JOBS], metavar="NAME")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--output", type=Path, help="where the hashes go as JSON")
    parser.add_argument("--folder", type=Path, help="where the jobs run and stay; default: a temporary one")
    options = parser.parse_args()
    if (options.checkout is None) == (options.compare is None):
        parser.error("expected CHECKOUT, or --compare BEFORE AFTER")
    return options


def run_all(options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.folder or Path(temporary)).resolve() / "identity"
        write_given(work / "given")
        shutil.copytree(options.configs or options.checkout / "configs", work / "given" / "configs")
        found = all_hashes(options.checkout.resolve(), work, options.jobs, parallel=options.parallel)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, hashes in found.items() if FAILED in hashes]
    if failed:
        return [f"{name} failed" for name in failed]
    pairs = [pair for pair in EQUAL if found.keys() >= {*pair}]
    return [f"{a} {b} {line}" for a, b in pairs for line in differences(found[a], found[b])]


def main() -> int:
    options = arguments()
    if options.compare:
        problems = compare(*(json.loads(path.read_text(encoding="utf-8")) for path in options.compare))
    else:
        problems = run_all(options)
    print("".join(f"differs: {line}\n" for line in problems), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
