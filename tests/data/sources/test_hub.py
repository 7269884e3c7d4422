from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_distill.data.columns import Columns
from vlm_distill.data.sources import Hub
from vlm_distill.errors import DataError

COLUMNS = Columns(image="file", question="q", references="a", meta={"type": "type"})


@pytest.mark.filterwarnings("default")  # of the datasets library, not ours
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hugging_face_data_set_gives_the_bytes_of_its_images(
    tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [{"bytes": picture(shade, format="JPEG"), "path": None} for shade in range(3)]
    features = datasets.Features(
        {"image": datasets.Image(), "pages": datasets.List(datasets.Image()), "q": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict(
        {"image": images, "pages": [images[:2]] * 3, "q": ["a", "b", "c"]}, features=features
    )
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    source = Hub(
        path=str(tmp_path / "set"),
        split="train",
        streaming=streaming,
        columns=Columns(image="image", question="q"),
    )
    rows = list(source.rows())
    assert [row.images[0]() for row in rows] == [image["bytes"] for image in images]
    assert rows[1].id == "set-1"
    pages = source.model_copy(update={"columns": Columns(images="pages")})
    assert [load() for load in next(iter(pages.rows())).images] == [
        picture(0, format="JPEG"),
        picture(1, format="JPEG"),
    ]
    with pytest.raises(DataError, match="split 'nope': cannot be loaded"):
        list(source.model_copy(update={"split": "nope"}).rows())


def test_a_hugging_face_data_set_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    source = Hub(path=str(tmp_path / "nothing"), split="train", columns=Columns())
    with pytest.raises(DataError, match="nothing', split 'train': cannot be loaded"):
        list(source.rows())
