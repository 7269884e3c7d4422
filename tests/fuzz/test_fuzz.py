"""Whatever its inputs are, a command ends well or says in one line what is wrong, and loses nothing."""

import os
import shutil
from pathlib import Path

import pytest

from tests.fuzz.harness import cases, describe, fuzz, summary
from tests.fuzz.kinds import KINDS
from tests.fuzz.material import make_material
from tests.whole_runs import once

pytestmark = pytest.mark.slow
# The cases follow from a seed, so that every run of a commit does the same ones; more of them by hand.
SEED = os.environ.get("FUZZ_SEED", "1")
NUM_CASES = int(os.environ.get("FUZZ_CASES", "272"))
NUM_SHARES = 4


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "fuzz_material", make_material)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(NUM_SHARES), ids=lambda share: f"seed-{SEED}-share-{share}")
def test_no_input_ends_in_a_traceback_a_hang_or_a_loss(share: int, material: Path, tmp_path: Path) -> None:
    chosen = cases(KINDS, seed=SEED, number=NUM_CASES)[share::NUM_SHARES]
    results = list(fuzz(chosen, material=material, work=tmp_path))
    print(f"seed {SEED}, share {share} of {NUM_SHARES}\n{summary(results)}")
    failed = [result for result in results if result.problems]
    for result in failed:
        print(describe(result))
    assert not failed, f"{len(failed)} of {len(results)} cases failed"
    shutil.rmtree(tmp_path)


def test_a_sample_has_every_kind() -> None:
    assert {kind for kind, _ in cases(KINDS, seed=SEED, number=len(KINDS))} == set(KINDS)
