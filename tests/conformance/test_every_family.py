"""Every tiny family is what it is expected to be: right in the checks, or found by the named ones."""

import pytest

from tests.families.every import FAMILIES, look_at
from tests.families.expected import REFUSED_BY

# The half that needs no gradients; all checks are made by `python -m tests.families`.
CHEAP = (
    "prompt_ids",
    "placeholders",
    "head",
    "positions",
    "token_extras",
    "generated",
    "causal",
    "padding",
    "alone",
    "mixed",
    "greedy",
    "trained",
)


# Code of families warns of what it does with random settings.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_right_or_found_to_be_wrong_in_the_checks_without_gradients(name: str) -> None:
    found = look_at(name, checks=CHEAP)
    assert found.is_expected(REFUSED_BY.get(name)), found.failed
