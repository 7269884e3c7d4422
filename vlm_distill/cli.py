"""The command line. Verbs import what they need when they run, so that --help and ls stay instant."""

import argparse
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vlm_distill import __version__
from vlm_distill.errors import UserError, one_line, printable, shown
from vlm_distill.faults import explained
from vlm_distill.stopping import end_at_once_on_signals, exit_code, handled, is_asked

LISTED = {"configs": "configs", "recipes": "data_recipes", "tasks": "eval/tasks", "suites": "eval/suites"}


def _load_run(options: Namespace) -> Any:
    """Return the run that a verb was given; what its schema refuses is answered before torch is imported."""
    from vlm_distill.config import check_yaml

    check_yaml(options.config, options.overrides, folder="configs")
    from vlm_distill.runs.config import load_run

    return load_run(options.config, options.overrides)


class _OneLine(logging.Formatter):
    """A message is a line, whatever the names in it hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (a hook of logging)
        return printable(super().formatMessage(record))


def _show_log() -> None:
    """Show this package's log and others' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("vlm_distill").setLevel(logging.INFO)


def _quiet_libraries() -> None:
    """Leave out transformers' bars for every load and save."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _run(options: Namespace) -> None:
    config = _load_run(options)
    _quiet_libraries()
    from vlm_distill.processes import is_main, stop
    from vlm_distill.reporting import write_report
    from vlm_distill.runs.folder import print_log
    from vlm_distill.runs.pipeline import run

    run(config, only=options.stage)
    if is_main():
        print_log(f"report: {write_report(config.folder)}")
    stop()


def _cache(options: Namespace) -> None:
    config = _load_run(options)
    _quiet_libraries()
    from vlm_distill.processes import stop
    from vlm_distill.runs.pipeline import fill_caches

    fill_caches(config)
    stop()


def _check(options: Namespace) -> None:
    config = _load_run(options)
    _quiet_libraries()
    from vlm_distill.runs.check import check

    print(check(config))


def _check_adapter(options: Namespace) -> int:
    _quiet_libraries()
    import json

    from vlm_distill.adapters.adapter import LoadOptions
    from vlm_distill.conformance.command import check_adapter
    from vlm_distill.conformance.table import all_findings, table, values
    from vlm_distill.processes import local_device
    from vlm_distill.runs.folder import print_log

    loading = LoadOptions(
        dtype=options.dtype,
        device=local_device(options.device),
        trust_remote_code=options.trust_remote_code,
    )
    found = check_adapter(options.model, loading, print_log)
    print(json.dumps(values(*found), indent=2, ensure_ascii=False) if options.json else table(*found))
    return int(any(one.outcome == "failed" for one in all_findings(*found).values()))


def _eval(options: Namespace) -> None:
    from vlm_distill.config import apply_overrides, check_yaml, decode

    check_yaml(options.suite, folder="eval/suites")
    _quiet_libraries()
    from vlm_distill.processes import is_main, stop
    from vlm_distill.runs.config import EvaluateConfig, ModelConfig
    from vlm_distill.runs.pipeline import evaluate_model

    name = options.model.removeprefix("bundled:").strip("./").replace("/", "_")
    settings = {"suite": options.suite, "limit": options.limit, "batch_size": options.batch_size}
    if options.engine:
        kind, *overrides = options.engine
        settings["engine"] = apply_overrides({"kind": kind}, overrides)
    model = {name: getattr(options, name) for name in ("model", "dtype", "trust_remote_code")}
    table = evaluate_model(
        decode(ModelConfig, model, where="eval"),
        decode(EvaluateConfig, {**settings, "shuffle_images": options.shuffle_images}, where="eval"),
        folder=options.output or Path("eval_results") / name,
        device=options.device,
    )
    if is_main():
        print(table)
    stop()


def _report(options: Namespace) -> None:
    from vlm_distill.reporting import write_report

    print(write_report(options.folder))


def _export(options: Namespace) -> None:
    _quiet_libraries()
    from vlm_distill.adapters.adapter import LoadOptions
    from vlm_distill.publishing.export import export
    from vlm_distill.runs.folder import print_log

    folder = export(
        options.source,
        options.target,
        stage=options.stage,
        options=LoadOptions(dtype=options.dtype, trust_remote_code=options.trust_remote_code),
        push_to=options.push,
        log=print_log,
    )
    print(folder)


def _ls(options: Namespace) -> None:
    from vlm_distill.config import shipped

    for what in LISTED if options.what == "all" else [options.what]:
        print(f"{what}:")
        for name, path in shipped(LISTED[what]).items():  # type: ignore[arg-type]
            print(f"  {name:<24} {_first_comment(path)}")


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {shown(text)}")
    return int(text)


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {shown(text)}")
    return Path(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """What `--help` says about a verb, its arguments by name as argparse takes them, and what it does.

    It may return an exit code. One that `continues` goes on where it was interrupted.
    """

    help: str
    arguments: Mapping[str, Mapping[str, Any]]
    run: Callable[[Namespace], int | None]
    continues: bool = False


CONFIG: dict[str, dict[str, Any]] = {
    "config": {"help": "a YAML path or the name of a shipped config (see `ls configs`)"},
    "overrides": {
        "nargs": "*",
        "metavar": "key=value",
        "help": "dotted overrides, for example train.learning_rate=1e-5",
    },
}
TRUST = {"action": "store_true", "help": "let the model's own code run"}
VERBS = {
    "run": Verb(
        help="distil a student: responses, training rounds, evaluation; resumes where it stopped",
        arguments={
            **CONFIG,
            "--stage": {
                "action": "append",
                "default": [],
                "metavar": "NAME",
                "help": "do only this step (round_1.train) or stage (round_1); may be repeated, see `check`",
            },
        },
        run=_run,
        continues=True,
    ),
    "cache": Verb(
        help="compute once what a run's teacher says about stored responses; resumes",
        arguments=CONFIG,
        run=_cache,
        continues=True,
    ),
    "check": Verb(
        help="print the resolved run and whether teacher and student fit together; trains nothing",
        arguments=CONFIG,
        run=_check,
    ),
    "check-adapter": Verb(
        help="prove that a model, of whatever family, is read and trained as transformers itself has it",
        arguments={
            "model": {"help": "a folder, a hub id or bundled:NAME"},
            "--json": {"action": "store_true", "help": "print the table for programs"},
            "--dtype": {
                "default": "float32",
                "choices": ["float32", "bfloat16", "float16", "auto"],
                "help": "of its weights; structure is always checked in float32 (default: float32)",
            },
            "--device": {"default": "auto"},
            "--trust-remote-code": TRUST,
        },
        run=_check_adapter,
    ),
    "eval": Verb(
        help="score a model on a suite",
        arguments={
            "model": {"help": "a folder, a hub id or bundled:NAME"},
            "--suite": {
                "required": True,
                "help": "a suite: a YAML path or a shipped name (see `ls suites`)",
            },
            "--output": {
                "type": _path,
                "help": "where predictions and results go (default: eval_results/MODEL)",
            },
            "--limit": {"type": _positive, "help": "at most this many questions of each task, whole images"},
            "--batch-size": {
                "type": _positive,
                "default": 64,
                "help": "responses decoded together, by the engine of this process (default: 64)",
            },
            "--engine": {
                "nargs": "+",
                "metavar": ("KIND", "key=value"),
                "help": "what generates: transformers, in batches of --batch-size (default), or vllm, with "
                "settings of its own such as dtype=float32 max_model_len=512",
            },
            "--dtype": {
                "default": "float32",
                "choices": ["float32", "bfloat16", "float16", "auto"],
                "help": "of the model in this process (default: float32); vllm has a `dtype` of its own",
            },
            "--device": {"default": "auto"},
            "--shuffle-images": {
                "action": "store_true",
                "help": "also score with images permuted between questions",
            },
            "--trust-remote-code": TRUST,
        },
        run=_eval,
        continues=True,
    ),
    "report": Verb(
        help="write report.html of a run, finished or not, from its folder",
        arguments={"folder": {"type": _path, "help": "the folder of a run"}},
        run=_report,
    ),
    "export": Verb(
        help="write a student for publication, with a model card",
        arguments={
            "source": {"type": _path, "help": "the folder of a run, or of a model"},
            "target": {"type": _path, "help": "a folder that does not exist yet"},
            "--stage": {"help": "a stage of the run, such as warmup (default: the last round)"},
            "--dtype": {
                "default": "auto",
                "choices": ["auto", "float32", "bfloat16", "float16"],
                "help": "default: as trained",
            },
            "--trust-remote-code": TRUST,
            "--push": {"metavar": "OWNER/NAME", "help": "also upload it to this hub repository"},
        },
        run=_export,
    ),
    "ls": Verb(
        help="list shipped configs, recipes, tasks and suites",
        arguments={"what": {"nargs": "?", "default": "all", "choices": ["all", *LISTED]}},
        run=_ls,
    ),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="vlm-distill", description="Distil large text and vision-language models into small ones."
    )
    top.add_argument("--version", action="version", version=f"vlm-distill {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=verb.help)
        for argument, settings in verb.arguments.items():
            one.add_argument(argument, **settings)
        one.set_defaults(run=verb.run, continues=verb.continues)
    return top


def _parse(arguments: Sequence[str] | None) -> Namespace:
    top = parser()
    options, rest = top.parse_known_args(arguments)
    # Overrides that stand behind an option are left over.
    if rest and ("overrides" not in options or any(one.startswith("-") for one in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code.

    0, 1 for a model that fails a check, 2 for what a user can mend, 130 when interrupted by Ctrl-C, 143 by
    SIGTERM or SIGUSR1.
    """
    with handled():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    options = Namespace(continues=False)
    try:
        options = _parse(arguments)
        _show_log()
        code: int | None = options.run(options)
    except KeyboardInterrupt as interrupted:
        return _interrupted(options, str(interrupted))
    except Exception as error:
        # Libraries turn an interrupt into an error of theirs, which a guard may have put into words.
        if is_asked():
            return _interrupted(options, f"interrupted ({type(error).__name__}: {one_line(error)})")
        line = str(error) if isinstance(error, UserError) else explained(error)
        if line is None:
            raise
        print(f"vlm-distill: error: {printable(' '.join(line.split()))}", file=sys.stderr)
        return 2
    return code or 0


def _interrupted(options: Namespace, line: str) -> int:
    rest = "; the same command continues where it stopped" if options.continues else ""
    # The processes of a launcher stop together.
    if os.environ.get("RANK", "0") == "0":
        print(f"vlm-distill: {line or f'interrupted{rest}'}", file=sys.stderr)
    return exit_code()


def program() -> NoReturn:
    """Run the verb of the command line and exit."""
    end_at_once_on_signals()
    sys.exit(main())


if __name__ == "__main__":
    program()
