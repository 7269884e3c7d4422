"""The table of all tiny families with what was found about each, made by one command.

    python -m tests.families [--write docs/families.md] [NAME ...]

Ends with 1 where a family is found to be other than expected (expected.py).
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

from tests.families.every import FAMILIES, IMAGE_TEXT, TEXT, Found, look_at_quietly
from tests.families.expected import REFUSED_BY
from vlm_distill.packages import package_version

HEADER = """# Model families

Written by `python -m tests.families --write docs/families.md`, with transformers {transformers} and
torch {torch}: tiny random models of every family that can be built, through all checks of
`vlm-distill check-adapter`. A family is *right* when every check that applies to it passes. A check that
fails is named; a run that needs it is refused before anything is trained. Families of the `generic` path have
no line of code of their own. "By a cache" and "in one sequence" are the ways in which several responses
share the forward of their prompt, as measured; without either they run separately.

What is true of a family need not be true of a checkpoint: `vlm-distill check-adapter MODEL` looks at yours.
"""
COLUMNS = "| family | path | shares prompts | worst difference | found |\n| --- | --- | --- | --- | --- |\n"


def _row(name: str, found: Found) -> str:
    facts = found.facts
    ways = {"by a cache": facts.prefix_sharing, "in one sequence": facts.one_sequence} if facts else {}
    sharing = ", ".join(way for way, is_exact in ways.items() if is_exact) or "no"
    errors = [
        one.error for one in found.findings.values() if one.outcome == "passed" and one.error is not None
    ]
    worst = f"{max(errors):.0e}" if errors else ""
    path = "generic" if found.is_generic else f"`{found.adapter}`"
    return f"| {name} | {path} | {sharing} | {worst} | {_said(found.failed) or 'right'} |\n"


def _said(failed: dict[str, str]) -> str:
    """Return the first failed check with its line, and how many others there are."""
    if not failed:
        return ""
    check, line = next(iter(failed.items()))
    others = f" (and {', '.join([*failed][1:])})" if len(failed) > 1 else ""
    return f"**{check}**: {_cell(line)}{others}"


def _cell(line: str) -> str:
    return line.replace("|", "/").replace("\n", " ")[:160]


def _section(title: str, names: list[str], found: dict[str, Found]) -> str:
    right = sum(not found[name].failed for name in names)
    rows = "".join(_row(name, found[name]) for name in names)
    return f"\n## {title}\n\n{right} of {len(names)} right in every check.\n\n{COLUMNS}{rows}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    names = options.names or [*FAMILIES]
    found: dict[str, Found] = {}
    unexpected = []
    with get_context("spawn").Pool(options.processes, maxtasksperchild=40) as pool:
        for name, one, seconds in pool.imap(look_at_quietly, names):
            found[name] = one
            if not one.is_expected(REFUSED_BY.get(name)):
                unexpected.append(name)
            print(f"{name}: {', '.join(one.failed) or 'right'} ({seconds:.1f} s)", flush=True)
    if options.write:
        options.write.write_text(_page(found))
    right = sum(not one.failed for one in found.values())
    print(f"{right} of {len(found)} families right; not as expected: {', '.join(unexpected) or 'none'}")
    return 1 if unexpected else 0


def _page(found: dict[str, Found]) -> str:
    versions = {name: package_version(name) for name in ("transformers", "torch")}
    sections = {"Image-text": IMAGE_TEXT, "Text": TEXT}
    tables = [
        _section(title, [name for name in some if name in found], found) for title, some in sections.items()
    ]
    return HEADER.format(**versions) + "".join(tables)


if __name__ == "__main__":
    raise SystemExit(main())
