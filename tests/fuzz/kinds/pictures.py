"""Pictures that are damaged, huge, animated, of odd modes or no pictures, and cells that name them."""

import base64
import contextlib
import io
import struct
import zlib
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz.case import OUTPUT, Case
from tests.fuzz.damage import damage_bytes, damaged_bytes, replace_file
from tests.fuzz.kinds.rows import FORMATS, run_on, take_table, valid_rows, write_rows
from tests.fuzz.material import TABLE
from tests.fuzz.values import odd_value
from vlm_distill.config import dump_yaml

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
KINDS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    "ICO",
    "TGA",
    "JPEG2000",
    "AVIF",
    "PDF",
    "EPS",
    "PCX",
    "DDS",
    "ICNS",
    "SGI",
)
SUFFIXES = (
    ".png",
    ".PNG",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".jp2",
    ".avif",
    ".svg",
    ".txt",
    "",
)


def files(random: Random, folder: Path, material: Path) -> Case:
    """Replace some pictures of a table by files that are none, or odd ones."""
    take_table(material, folder)
    rows = valid_rows()
    for row in random.sample(rows, random.randrange(1, 4)):
        _spoil(random, folder / row["image"])
    return _run(random, folder, rows)


def cells(random: Random, folder: Path, material: Path) -> Case:
    """Name pictures in odd ways: base64, URLs, records, paths that lead elsewhere, lists."""
    take_table(material, folder)
    rows, data = valid_rows(), (folder / "images/train_red.png").read_bytes()
    encoded = base64.b64encode(data).decode()
    values = (
        encoded,
        encoded[:-5],
        f"data:image/png;base64,{encoded}",
        f"data:image/png,{encoded}",
        {"bytes": encoded, "path": None},
        {"bytes": None, "path": rows[0]["image"]},
        {"path": None},
        str(folder / rows[0]["image"]),
        "images",
        "images/../images/train_red.png",
        "images/train_red.png/",
        "/dev/zero",
        "/proc/self/mem",
        f"{'x' * 300}.png",
        [rows[0]["image"], rows[1]["image"]],
        odd_value(random),
    )
    for row in random.sample(rows, random.randrange(1, 4)):
        row["image"] = random.choice(values)
    if random.random() < 0.2:
        rows = [{("images" if key == "image" else key): row[key] for key in row} for row in rows]
    return _run(random, folder, rows)


def folders(random: Random, folder: Path, material: Path) -> Case:
    """Read a folder of pictures with odd files in it, and with or without a table of metadata."""
    take_table(material, folder)
    pictures = folder / "images"
    names = sorted(path.name for path in pictures.glob("train_*.png"))
    for name in random.sample(names, random.randrange(3)):
        _spoil(random, pictures / name)
    _add_more(random, pictures)
    has_table = random.random() < 0.6
    if has_table:
        rows = [{"file_name": name, "question": f"What is {name}?"} for name in names]
        for row in random.sample(rows, random.randrange(3)):
            key = random.choice(list(row))
            row[key] = random.choice(
                (odd_value(random), f"./{row[key]}", f"x/../{row[key]}", row[key].upper())
            )
        write_rows(pictures / f"metadata{random.choice(('.jsonl', '.csv', '.parquet', '.json'))}", rows)
    columns = {"question": "question"} if has_table else {}
    prompt = "{{ question }}" if has_table else "What is this?"
    source = {"kind": "image_folder", "path": "images", "columns": columns}
    recipe = {"name": "folder", "sources": [{"source": source, "prompt": prompt}]}
    if random.random() < 0.6:
        recipe["on_bad_row"] = "skip"
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    overrides = ("data={recipe: recipe.yaml}", f"output={OUTPUT}")
    return Case(commands=(("run", TABLE, *overrides),))


def _run(random: Random, folder: Path, rows: list[dict[str, object]]) -> Case:
    path = folder / f"table{random.choice(FORMATS)}"
    write_rows(path, rows)
    return run_on(path, random, rows=len(rows))


def _add_more(random: Random, pictures: Path) -> None:
    """Put files into a folder that are none of its pictures."""
    for _ in range(random.randrange(4)):
        name = random.choice(
            (
                "._train_red.png",
                "Thumbs.db",
                "notes.txt",
                ".hidden/x.png",
                "deep/a/b.png",
                "x.PNG",
                "x.jfif",
                "x.svg",
            )
        )
        path = pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            (pictures / "train_teal.png").read_bytes() if random.random() < 0.6 else b"no picture"
        )
    if random.random() < 0.2:
        (pictures / "again").symlink_to(".")


def _spoil(random: Random, path: Path) -> None:
    """Change a picture file, or what stands there."""
    match random.choice(
        ("bytes", "bytes", "other", "mode", "mode", "format", "large", "moving", "turned", "suffix", "text")
    ):
        case "bytes":
            damage_bytes(random, path)
        case "other":
            replace_file(random, path)
        case "mode":
            _save(_drawn(random.choice(MODES)), path, random.choice(("PNG", "TIFF", "WEBP", "GIF")))
        case "format":
            _save(_drawn("RGB"), path, random.choice(KINDS))
        case "large":
            sizes = (
                (1, 5_000_000),
                (5_000_000, 1),
                (20_000, 20_000),
                (2**31 - 1, 2**31 - 1),
                (0, 0),
                (1, 1),
                (3000, 1),
            )
            path.write_bytes(png_of(*random.choice(sizes), with_pixels=random.random() < 0.5))
        case "moving":
            frames = [_drawn("RGB") for _ in range(3)]
            frames[0].save(
                path,
                format=random.choice(("GIF", "WEBP", "PNG", "TIFF")),
                save_all=True,
                append_images=frames[1:],
            )
        case "turned":
            picture, exif = _drawn("RGB"), Image.Exif()
            exif[0x0112] = random.choice((0, 1, 3, 6, 8, 9, 255))
            picture.save(path, format="JPEG", exif=damaged_bytes(random, exif.tobytes()))
        case "text":
            path.write_text(
                random.choice(
                    (
                        "<svg xmlns='http://www.w3.org/2000/svg'/>",
                        "<html>404</html>",
                        "version https://git-lfs",
                    )
                )
            )
        case _:
            path.rename(path.with_suffix(random.choice(SUFFIXES)))


def _drawn(mode: str) -> Image.Image:
    return (
        Image.linear_gradient("L").resize((24, 20)).convert("RGB").convert("L").convert(mode)
        if mode in ("1", "L", "I", "F")
        else _colored(mode)
    )


def _colored(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.new("I;16", (24, 20), 40_000)
    return Image.new(mode, (24, 20), None if mode == "P" else 0)


def _save(picture: Image.Image, path: Path, kind: str) -> None:
    """Write a picture where the format knows its mode, else whatever that leaves."""
    buffer = io.BytesIO()
    with contextlib.suppress(OSError, ValueError, KeyError):
        picture.save(buffer, format=kind)
    path.write_bytes(buffer.getvalue())


def png_of(width: int, height: int, *, with_pixels: bool) -> bytes:
    """Return a grey PNG of a size, with its pixels where they are few kilobytes in the file."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    num_bytes = (width + 1) * height if with_pixels and (width + 1) * height <= 20_000_000 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(num_bytes), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
