"""Do cases by hand: `python -m tests.fuzz KIND SEED` for one, `python -m tests.fuzz NUMBER [SEED]` for many.

What failed is printed as JSON, a line a case; its inputs stay in the folder that is named first.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.command import printing_to
from tests.fuzz.harness import cases, fuzz, summary
from tests.fuzz.kinds import KINDS
from tests.fuzz.material import make_material


def main(arguments: list[str]) -> int:
    first, seed = arguments[0], arguments[1] if len(arguments) > 1 else "1"
    chosen = [(first, seed)] if first in KINDS else cases(KINDS, seed=seed, number=int(first))
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(work, file=sys.stderr)
    material = work / "material"
    material.mkdir()
    with printing_to(work / "material.log"):
        make_material(material)
    results = []
    for result in fuzz(chosen, material=material, work=work / "cases"):
        results.append(result)
        if result.problems:
            print(json.dumps(asdict(result)), flush=True)
    print(summary(results), file=sys.stderr)
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
