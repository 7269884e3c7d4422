"""What the processes of the jobs in test_shared_generation.py do.

`python -m tests.distributed.generation_jobs NAME FOLDER`; each process writes what it was asked for and what
it got to FOLDER/N.json.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests import color_task, engines
from vlm_distill import processes
from vlm_distill.errors import EngineError, UserError
from vlm_distill.files import write_json
from vlm_distill.generation import work
from vlm_distill.generation.engine import Completion, Sampling
from vlm_distill.records import Example


class Killed(engines.Recorded):
    """Dies in the second process when its first batch is stored."""

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        completions = super().generate(examples, sampling)
        if processes.rank() == 1 and len(self.asked) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return completions


class Broken(engines.Recorded):
    """Fails in the second process."""

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[Completion]:
        if processes.rank() == 1:
            raise EngineError("the engine of process 1 is broken")
        return super().generate(examples, sampling)


def share(folder: Path) -> None:
    """Generate in an empty folder and in one that holds a part, and evaluate."""
    facts = {}
    for name in ("fresh", "half"):
        engine = engines.Recorded(engines.llava_engine())
        facts[name] = [asdict(row) for row in engines.llava_job(engine, folder / name)]
        facts[f"asked_{name}"] = engine.asked
    counting = color_task.scripted()
    result = color_task.Bench(folder).evaluate(counting)
    facts["scores"] = {name: asdict(value["all"]) for name, value in result.metrics.items()}
    facts["asked_eval"] = [example.id for example in counting.asked]
    write_json(folder / f"{processes.rank()}.json", facts)


def main(name: str, folder: Path) -> int:
    processes.start("cpu")
    work.SHARD_SECONDS = 0.0
    try:
        if name == "share":
            share(folder)
        elif name == "stored":
            rows = engines.llava_job_with(engines.no_engine, folder)
            print("the stored rows without an engine:", len(rows))
        else:
            kind = {"killed": Killed, "broken": Broken}[name]
            engines.llava_job(kind(engines.llava_engine()), folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    processes.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
