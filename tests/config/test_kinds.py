"""A field that takes one of several records by its kind, also those of another package and any object."""

import logging
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pytest
from pydantic import Field

from tests.distributions import declare, forget
from vlm_distill.config import Kinds, Record, decode, dump_yaml, parse_yaml
from vlm_distill.errors import ConfigError

GROUP = "vlm_distill.sounds"
MODULE = """
from dataclasses import dataclass, field
from typing import Literal, Optional


@dataclass(frozen=True, kw_only=True, slots=True)
class Horn:
    kind: Literal["horn"] = "horn"
    volume: float = 2.0
    notes: tuple[int, ...] = ()

    def __post_init__(self):
        if self.volume < 0:
            raise ValueError("expected volume >= 0")

    def play(self):
        return "toot"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mute:
    kind: Literal["mute"] = "mute"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loud(Horn):
    kind: Literal["loud"] = "loud"


class Plain: ...


@dataclass(frozen=True)
class Choir:
    kind: Literal["choir"] = "choir"
    loudness: dict[int, float] = field(default_factory=dict)
    play: str = ""


@dataclass(frozen=True)
class Twice(Horn):
    kind: Literal["broken"] = "broken"

    def __post_init__(self):
        raise TypeError("no luck")


@dataclass(frozen=True)
class Echo(Horn):
    kind: Literal["broken"] = "broken"
    of: Optional["Echo"] = None


@dataclass(frozen=True)
class Coded(Horn):
    kind: Literal["broken"] = "broken"
    thing: object = field(default_factory=object)


THINGS = {1: 2}
"""


@runtime_checkable
class Sound(Protocol):
    @property
    def kind(self) -> str: ...

    def play(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Loud:
    kind: Literal["loud"] = "loud"
    volume: float = 1.0

    def play(self) -> str:
        return "boom"


class Quiet(Record):
    kind: Literal["quiet"] = "quiet"

    def play(self) -> str:
        return ""


@dataclass(frozen=True)
class Own:
    kind: str = "own"
    size: int = 1

    def play(self) -> str:
        return "mine"


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution with entry points `name=target` in the group."""
    (tmp_path / "my_sounds.py").write_text(MODULE)
    (tmp_path / "my_exit.py").write_text("raise SystemExit(0)")
    (tmp_path / "my_end.py").write_text("raise GeneratorExit")
    monkeypatch.syspath_prepend(tmp_path)

    def installed(distribution: str, **entries: str) -> None:
        declare(tmp_path, distribution, GROUP, **entries)
        forget()

    yield installed
    forget()
    sys.modules.pop("my_sounds", None)


def decoded(value: Any, *, where: str = "run.yaml") -> Any:
    """Return the sound that a file says, by a record made after what is installed."""

    class Holder(Record):
        sound: Annotated[Sound, Kinds(GROUP, (Loud, Quiet))]

    return decode(Holder, {"sound": value}, where=where).sound


def refusal(value: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        decoded(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_kind_of_another_package_is_decoded_as_a_known_one(install: Install) -> None:
    install("horns", horn="my_sounds:Horn")
    found = decoded({"kind": "horn", "volume": "3", "notes": [1, 2]})
    assert (found.play(), found.volume, found.notes) == ("toot", 3.0, (1, 2))
    assert decoded({"kind": "loud"}) == Loud()
    assert decoded({"kind": "quiet"}) == Quiet()


def test_the_keys_of_its_mappings_may_be_numbers(install: Install) -> None:
    install("choirs", choir="my_sounds:Choir")
    assert decoded({"kind": "choir", "loudness": {1: 2}}).loudness == {1: 2.0}
    assert "sound.loudness.a" in refusal({"kind": "choir", "loudness": {"a": 2}})


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"kind": "horm"}, "sound.kind: unknown kind 'horm'; did you mean 'horn'? known: horn, loud, quiet"),
        ({"kind": "horn", "volum": 1}, "sound.volum: unknown key; did you mean 'volume'?"),
        ({"kind": "horn", "notes": ["a"]}, "sound.notes.0: input should be a valid integer"),
        ({"kind": "horn", "volume": -1}, "sound: expected volume >= 0"),
        ({"kind": ["horn"]}, "sound.kind: unknown kind"),
        ({"volume": 1}, "sound.kind: this key is required"),
        ("horn", "sound: expected a mapping of keys to values, got 'horn'"),
    ],
)
def test_a_mistake_in_it_is_said_as_in_a_known_one(install: Install, value: Any, line: str) -> None:
    install("horns", horn="my_sounds:Horn")
    assert line in refusal(value)


def test_only_what_is_named_is_loaded(install: Install) -> None:
    install("horns", horn="my_sounds:Horn", shattered="no_such_module:Horn")
    decoded({"kind": "loud"})
    assert "unknown kind 'horm'" in refusal({"kind": "horm"})
    assert "my_sounds" not in sys.modules
    decoded({"kind": "horn"})
    assert "my_sounds" in sys.modules


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:Horn", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_exit:Horn", "cannot be loaded: SystemExit: 0; mend or uninstall it"),
        ("my_end:Horn", "cannot be loaded: GeneratorExit: ; mend or uninstall it"),
        ("my_sounds:Harp", "cannot be loaded: AttributeError: module 'my_sounds' has no attribute 'Harp'"),
        ("my_sounds:THINGS", "expected a dataclass or model with `kind: Literal['broken']`"),
        ("my_sounds:Plain", "expected a dataclass or model with `kind: Literal['broken']`: Unable to"),
        ("my_sounds:Twice", "cannot be made: TypeError: no luck; mend or uninstall it"),
        ("my_sounds:Echo", "cannot be made: RecursionError: maximum recursion depth exceeded"),
        ("my_sounds:Coded", "expected fields that JSON can hold: Unable to serialize unknown type"),
        ("my_sounds:Mute", "expected a dataclass or model with `kind: Literal['broken']`"),
    ],
)
def test_a_broken_one_is_said_with_its_distribution(install: Install, target: str, reason: str) -> None:
    install("horns", broken=target)
    assert f"run.yaml: sound: horns 0.3 ({GROUP}: broken)" in (line := refusal({"kind": "broken"}))
    assert reason in line


def test_what_it_lacks_is_said(install: Install) -> None:
    install("horns", mute="my_sounds:Mute")
    line = f"sound: horns 0.3 ({GROUP}: mute): expected what Sound asks for, lacks play"
    assert line in refusal({"kind": "mute"})


def test_one_name_of_two_distributions_is_refused_by_both_names(install: Install) -> None:
    install("horns", horn="my_sounds:Horn")
    install("brass", horn="my_sounds:Horn")
    line = f"{GROUP}: 'horn' is brought by brass 0.3 and horns 0.3: uninstall one of them"
    assert line in refusal({"kind": "horn"})
    assert decoded({"kind": "loud"}) == Loud()


def test_the_unreadable_files_of_other_packages_end_no_command(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install("horns", horn="my_sounds:Horn")
    files = {"foreign": b"[group]\nno target\n", "torn": f"[{GROUP}]\nno target\n".encode(), "latin": b"\xe4"}
    for name, content in files.items():
        declare(tmp_path, name, GROUP)
        (tmp_path / f"{name}-0.3.dist-info" / "entry_points.txt").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert decoded({"kind": "horn"}).play() == "toot"
        decoded({"kind": "loud"})
    said = [line.partition(": its entry_points.txt cannot be read: ")[0] for line in caplog.messages]
    assert sorted(said) == ["latin 0.3", "torn 0.3"], "what mentions no group of ours is not taken apart"


@pytest.mark.parametrize(
    "metadata", [None, b"", b"Version: 1\n", b"\xff\xfe\x00Name", b"Name: \x1b[31m\nVersion: 1"]
)
def test_a_distribution_without_a_readable_name_ends_no_command(
    install: Install, tmp_path: Path, metadata: bytes | None
) -> None:
    install("horns", horn="my_sounds:Horn")
    declare(tmp_path, "torn", GROUP, loud="my_sounds:Loud", odd="my_sounds:Horn")
    (tmp_path / "torn-0.3.dist-info" / "METADATA").unlink()
    if metadata is not None:
        (tmp_path / "torn-0.3.dist-info" / "METADATA").write_bytes(metadata)
    assert decoded({"kind": "horn"}).play() == "toot"
    assert decoded({"kind": "quiet"}) == Quiet()


def test_of_a_distribution_that_stands_twice_on_the_path_the_first_is_taken(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (later := tmp_path / "later").mkdir()
    declare(later, "Horns", GROUP, horn="no_such_module:Horn")
    monkeypatch.setattr(sys, "path", [*sys.path, str(later)])
    install("horns", horn="my_sounds:Horn")
    assert decoded({"kind": "horn"}).play() == "toot"


def test_one_that_takes_the_place_of_a_built_in_one_is_said_once(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("horns", loud="my_sounds:Loud")
    with caplog.at_level(logging.WARNING):
        assert decoded({"kind": "loud", "notes": [1]}).play() == "toot"
        decoded({"kind": "loud"})
        decoded({"kind": "quiet"})
    assert caplog.messages == [f"horns 0.3 ({GROUP}: loud) takes the place of the built-in loud"]


class Band(Record):
    sound: Annotated[Sound, Kinds(GROUP, (Loud, Quiet))] = Quiet()
    others: tuple[Annotated[Sound, Kinds(GROUP, (Loud, Quiet))], ...] = ()


def test_an_object_is_taken_as_it_is_and_written_as_its_fields() -> None:
    own = Own(size=3)
    band = Band(sound=own, others=(Loud(volume=2), Quiet()))
    assert band.sound is own
    assert band.model_dump(mode="json") == {
        "sound": {"kind": "own", "size": 3},
        "others": [{"kind": "loud", "volume": 2}, {"kind": "quiet"}],
    }


def test_an_object_that_lacks_something_is_refused() -> None:
    @dataclass(frozen=True)
    class Stone:
        kind: str = "stone"

    with pytest.raises(ValueError, match="Stone: expected what Sound asks for, lacks play"):
        Band(sound=Stone())


@dataclass(frozen=True)
class Costly(Own):
    size: object = object()

    @property
    def play(self) -> object:
        raise RuntimeError("a property is not run")


def test_what_is_no_record_or_cannot_be_written_is_refused() -> None:
    for value in (3, Own, Loud, SimpleNamespace(kind="own", play=print)):
        with pytest.raises(ValueError, match=r"valid dictionary|expected tags"):
            Band(sound=value)
    with pytest.raises(ValueError, match="Costly: expected fields that JSON can hold"):
        Band(sound=Costly())


def test_infinity_is_written_and_read_as_infinity() -> None:
    band = Band(sound=Loud(volume=math.inf))
    written = band.model_dump(mode="json")
    assert written["sound"]["volume"] == math.inf
    assert decode(Band, parse_yaml(dump_yaml(written), where=""), where="") == band


def test_an_object_whose_kind_means_the_record_of_a_package_is_refused(install: Install) -> None:
    class Default(Record):
        sound: Annotated[Sound, Kinds(GROUP, (Loud, Quiet))] = Field(default=Loud(), validate_default=True)

    install("horns", loud="my_sounds:Loud")
    for values in ({}, {"sound": Loud()}):
        with pytest.raises(ValueError, match=f"Loud: its kind is that of horns 0.3 \\({GROUP}: loud\\)"):
            Default(**values)
    # Said by its kind it is the package's, as an object too.
    taken = Default(sound={"kind": "loud"}).sound
    assert Default(sound=taken).sound is taken
