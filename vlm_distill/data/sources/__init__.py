"""Where examples come from: the kinds of sources. Prompts are made in examples.py, mixtures in recipe.py."""

from collections.abc import Iterator
from typing import Annotated, Any, Protocol, TypeAlias, get_args, runtime_checkable

from vlm_distill.config import Kinds
from vlm_distill.data.bad_rows import RowError
from vlm_distill.data.rows import Row
from vlm_distill.data.sources.files import Files
from vlm_distill.data.sources.hub import Hub
from vlm_distill.data.sources.image_folder import ImageFolder
from vlm_distill.data.sources.package_data import PackageData


@runtime_checkable
class SourceConfig(Protocol):
    """What a recipe or task asks of a source; its fields are its settings. Only kind `hub` downloads."""

    @property
    def kind(self) -> str: ...

    @property
    def label(self) -> str:
        """Its name, which ids begin with where there is no id column."""

    @property
    def hub_id(self) -> str | None:
        """The data set on the hub that it is."""

    def rows(self) -> Iterator[Row | RowError]:
        """Yield its rows in a fixed order, what is wrong with it in place of one that cannot be used.

        Raises:
            DataError: it is not there, or none of its rows can be read.
        """

    def state(self) -> Any:
        """Return what changes when its content does, as far as that is cheap to see, as a JSON value.

        Images that a table names are not looked at.
        """

    def describe(self) -> str:
        """Return in Markdown what it is, without paths of this machine."""


KnownSource: TypeAlias = PackageData | Files | ImageFolder | Hub
Source: TypeAlias = Annotated[SourceConfig, Kinds("vlm_distill.sources", get_args(KnownSource))]

__all__ = ["Files", "Hub", "ImageFolder", "KnownSource", "PackageData", "Source", "SourceConfig"]
