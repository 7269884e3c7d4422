"""The command line. Verbs import what they need when they run, so that --help and ls stay instant."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_distill import __version__
from vlm_distill.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: 0, 2 for what a user can mend, 130 when interrupted."""
    options = parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], None] = options.verb
    try:
        verb(options)
    except UserError as error:
        print(f"vlm-distill: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        # An unwritable folder, a full disk.
        print(f"vlm-distill: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-distill: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="vlm-distill", description="Distil large text and vision-language models into small ones."
    )
    top.add_argument("--version", action="version", version=f"vlm-distill {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)

    run = verbs.add_parser(
        "run", help="distil a student: responses, training rounds, evaluation; resumes where it stopped"
    )
    _config_arguments(run)
    run.set_defaults(verb=_run)

    cache = verbs.add_parser(
        "cache",
        help="compute once what a run's teacher says about stored responses; resumes",
    )
    _config_arguments(cache)
    cache.set_defaults(verb=_cache)

    check = verbs.add_parser(
        "check", help="print the resolved run and whether teacher and student fit together; trains nothing"
    )
    _config_arguments(check)
    check.set_defaults(verb=_check)

    _eval_arguments(verbs.add_parser("eval", help="score a model on a suite"))

    report = verbs.add_parser("report", help="write report.html of a run, finished or not, from its folder")
    report.add_argument("folder", type=Path, help="the folder of a run")
    report.set_defaults(verb=_report)

    _export_arguments(verbs.add_parser("export", help="write a student for publication, with a model card"))

    listing = verbs.add_parser("ls", help="list shipped configs, recipes, tasks and suites")
    listing.add_argument(
        "what", nargs="?", default="all", choices=["all", "configs", "recipes", "tasks", "suites"]
    )
    listing.set_defaults(verb=_ls)
    return top


def _eval_arguments(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("model", help="a folder, a hub id or bundled:NAME")
    evaluate.add_argument(
        "--suite", required=True, help="a suite: a YAML path or a shipped name (see `ls suites`)"
    )
    evaluate.add_argument(
        "--output", type=Path, help="where predictions and results go (default: eval_results/MODEL)"
    )
    evaluate.add_argument(
        "--limit", type=_positive, help="at most this many questions of each task, whole images"
    )
    evaluate.add_argument("--batch-size", type=_positive, default=64)
    evaluate.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "auto"])
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument(
        "--shuffle-images", action="store_true", help="also score with images permuted between questions"
    )
    evaluate.add_argument("--trust-remote-code", action="store_true", help="let the model's own code run")
    evaluate.set_defaults(verb=_eval)


def _export_arguments(export: argparse.ArgumentParser) -> None:
    export.add_argument("source", type=Path, help="the folder of a run, or of a model")
    export.add_argument("target", type=Path, help="a folder that does not exist yet")
    export.add_argument("--stage", help="a stage of the run, such as warmup (default: the last round)")
    export.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as trained")
    export.add_argument("--push", metavar="OWNER/NAME", help="also upload it to this hub repository")
    export.set_defaults(verb=_export)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _config_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", help="a YAML path or the name of a shipped config (see `ls configs`)")
    verb.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="dotted overrides, for example train.learning_rate=1e-5",
    )


def _run(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from vlm_distill.processes import is_main, stop
    from vlm_distill.reporting import write_report
    from vlm_distill.runs.config import load_run
    from vlm_distill.runs.folder import print_log
    from vlm_distill.runs.pipeline import run

    config = load_run(options.config, options.overrides)
    run(config)
    if is_main():
        print_log(f"report: {write_report(config.folder)}")
    stop()


def _cache(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from vlm_distill.processes import stop
    from vlm_distill.runs.config import load_run
    from vlm_distill.runs.pipeline import fill_caches

    fill_caches(load_run(options.config, options.overrides))
    stop()


def _quiet_libraries() -> None:
    """Show this package's log and others' warnings, without transformers' bars for every load and save."""
    import logging

    from transformers.utils.logging import disable_progress_bar

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("vlm_distill").setLevel(logging.INFO)
    disable_progress_bar()


def _check(options: argparse.Namespace) -> None:
    from vlm_distill.runs.check import check
    from vlm_distill.runs.config import load_run

    print(check(load_run(options.config, options.overrides)))


def _eval(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from vlm_distill.processes import is_main, stop
    from vlm_distill.runs.config import EvaluateConfig, ModelConfig
    from vlm_distill.runs.pipeline import evaluate_model

    name = options.model.removeprefix("bundled:").strip("./").replace("/", "_")
    settings = {"suite": options.suite, "limit": options.limit, "batch_size": options.batch_size}
    table = evaluate_model(
        ModelConfig(model=options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code),
        EvaluateConfig(**settings, shuffle_images=options.shuffle_images),
        folder=options.output or Path("eval_results") / name,
        device=options.device,
    )
    if is_main():
        print(table)
    stop()


def _report(options: argparse.Namespace) -> None:
    from vlm_distill.reporting import write_report

    print(write_report(options.folder))


def _export(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from vlm_distill.publishing.export import export
    from vlm_distill.runs.folder import print_log

    folder = export(
        options.source,
        options.target,
        stage=options.stage,
        dtype=options.dtype,
        push_to=options.push,
        log=print_log,
    )
    print(folder)


def _ls(options: argparse.Namespace) -> None:
    from vlm_distill.config import shipped

    folders = {
        "configs": "configs",
        "recipes": "data_recipes",
        "tasks": "eval/tasks",
        "suites": "eval/suites",
    }
    for what, folder in folders.items():
        if options.what not in ("all", what):
            continue
        print(f"{what}:")
        for name, path in shipped(folder).items():  # type: ignore[arg-type]
            print(f"  {name:<24} {_first_comment(path)}")


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


if __name__ == "__main__":
    sys.exit(main())
