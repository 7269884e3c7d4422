"""Where examples come from: the kinds of sources. Prompts are made in examples.py, mixtures in recipe.py.

A source is a record with four answers. `label` is its name, which ids begin with where there is no id column.
`rows()` yields its rows in a fixed order, and raises DataError where it is not there or a row is not what its
columns say. `state()` is what changes when its content does, as far as that is cheap to see, as a JSON value:
images that a table names are not looked at. `describe()` says in Markdown what it is, without paths of this
machine; `hub_id` is the data set on the hub that it is. Nothing is downloaded except by kind `hub`.
"""

from typing import Annotated

from pydantic import Field

from vlm_distill.data.sources.files import Files
from vlm_distill.data.sources.hub import Hub
from vlm_distill.data.sources.image_folder import ImageFolder
from vlm_distill.data.sources.package_data import PackageData

Source = Annotated[PackageData | Files | ImageFolder | Hub, Field(discriminator="kind")]

__all__ = ["Files", "Hub", "ImageFolder", "PackageData", "Source"]
