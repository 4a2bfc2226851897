"""Draw the dataset of the typeface students: two or three words in 200 open typefaces.

    apt-get install --no-install-recommends $(python -m tools.typeface_words --packages)
    python -m tools.typeface_words data/typeface_words

Writes `FOLDER/{train,test,photo/test}/FAMILY/NUMBER_WORDS.jpg`, 50,000, 5,000 and 5,000 RGB images of 64x64 pixels,
`FOLDER/families.csv` with the package and the licence of each family, and a dataset card that lists them. Words, letter
case, weights, sizes, places, colours and backgrounds are random. The test images show words, angles and kinds of
background that no training image has; those of `photo`, a dataset of its own, look photographed as well: perspective,
uneven light, blur and traces of JPEG. Other numbers of `--seed` give other images of the same families. The images
depend only on the arguments and the versions of the packages, NumPy and Pillow.
"""

import csv
import io
import os
import random
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image, ImageFilter

from frskd_timm.errors import UserError
from frskd_train.errors import either
from tools.typeface_families import PACKAGES, Family, choose, set_text
from tools.typefaces import is_for_training, parse
from tools.whole import whole

CARD_TEXT = """
# Typeface words

Two or three words in {families} open typefaces, RGB images of {size}x{size} pixels; per family {images}.
They are drawn from the fonts of Debian's packages, in a clone of frskd_timm:
`python -m tools.typeface_words FOLDER {flags} --size {size} --seed {seed}`.
`test` and `photo` show words, angles and kinds of background that `train` does not have; `photo` adds perspective,
uneven light, blur and traces of JPEG. Backgrounds: {backgrounds}.
The classes are named after the families; other characters than ASCII letters and digits become underscores.

| family | Debian package | licence of the fonts |
|---|---|---|
{table}
"""


@dataclass(frozen=True)
class Rendering:
    """How the images of a split are drawn; angles in degrees."""

    angles: tuple[float, float]
    backgrounds: tuple[str, ...]
    photographed: bool = False


RENDERINGS = {
    "train": Rendering((0, 6), ("plain", "gradient", "clouds", "grain", "blobs", "facets")),
    "test": Rendering((6, 10), ("stripes", "a spot")),
    "photo": Rendering((6, 10), ("stripes", "a spot"), photographed=True),
}


def draw_words(r: random.Random, split: str) -> list[str]:
    """Return two or three words of three to five letters, which may be in this split."""
    words: list[str] = []
    count, change = r.randint(2, 3), r.choice((str.lower, str.lower, str.capitalize, str.upper))
    while len(words) < count:
        word = "".join(r.choices(ascii_lowercase, k=r.randint(3, 5)))
        if (split == "train") == is_for_training(word):
            words.append(change(word))
    return words


def draw_colours(r: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Return ink and paper, dark on light or light on dark, with a contrast of at least 90 of 255 levels."""
    while True:
        ink, paper = (np.array([r.uniform(0, 255) for _ in range(3)], np.float32) for _ in range(2))
        if abs((ink - paper) @ np.array([0.299, 0.587, 0.114], np.float32)) >= 90:
            return ink, paper


def draw_paper(r: random.Random, kind: str, side: int) -> np.ndarray:
    """Return how far each pixel of a background is from the colour of the paper, in [-1, 1], shape (side, side, 1)."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    angle = r.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == "gradient":
        level = along * 1.4
    elif kind == "clouds":
        level = draw_clouds(r, 5, side)
    elif kind == "grain":
        level = draw_clouds(r, r.randint(10, 50), side)
    elif kind == "blobs":  # with edges
        level = r.uniform(0.5, 1) * np.sign(draw_clouds(r, r.randint(3, 30), side))
    elif kind == "facets":  # between lines at any place and angle
        level = np.zeros_like(along)
        for _ in range(r.randint(2, 6)):
            turn = r.uniform(0, 2 * np.pi)
            level += r.uniform(0.2, 0.6) * np.sign(x * np.cos(turn) + y * np.sin(turn) - r.uniform(-0.5, 0.5))
    elif kind == "stripes":
        level = np.sign(np.sin(along * r.uniform(15, 50)))
    elif kind == "a spot":
        level = 1 - 2 * np.hypot(x - r.uniform(-0.5, 0.5), y - r.uniform(-0.5, 0.5))
    else:
        level = np.zeros_like(along)
    return np.clip(level, -1, 1)[..., None]


def draw_clouds(r: random.Random, cells: int, side: int) -> np.ndarray:
    """Return smooth noise that changes over 1 / `cells` of the page, shape (side, side)."""
    coarse = np.array([[r.uniform(-1, 1) for _ in range(cells)] for _ in range(cells)], np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def draw_image(path: Path, r: random.Random, words: Sequence[str], size: int, rendering: Rendering) -> Image.Image:
    """Set words below each other on a square page of `size` pixels."""
    side = 2 * size  # drawn at twice the size, so that edges are smooth
    angle = r.choice((-1, 1)) * r.uniform(*rendering.angles)
    text = set_text(path, "\n".join(words), r.randint(0, 20)).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    scale = r.uniform(0.75, 0.98) * side / max(text.size)
    width, height = (max(1, round(length * scale)) for length in text.size)
    mask = Image.new("L", (side, side), 0)
    place = r.randint(0, side - width), r.randint(0, side - height)
    mask.paste(text.resize((width, height), Image.Resampling.LANCZOS), place)
    marks = np.asarray(mask, np.float32)[..., None] / 255
    ink, paper = draw_colours(r)
    page = paper + r.uniform(10, 30) * draw_paper(r, r.choice(rendering.backgrounds), side)
    image = Image.fromarray(np.clip(page + (ink - page) * marks, 0, 255).astype(np.uint8))
    if rendering.photographed:
        image = photograph(image, r)
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(r.getrandbits(32)).normal(0, r.uniform(0, 8), (size, size, 3))
    image = Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))
    return compress(image, r.randint(30, 70)) if rendering.photographed else image


def photograph(image: Image.Image, r: random.Random) -> Image.Image:
    """Return an image as a camera may see it: from one side, out of focus, in uneven light."""
    side = image.width
    corners = ((0, 0), (side, 0), (side, side), (0, side))
    seen = [(x + r.uniform(-0.08, 0.08) * side, y + r.uniform(-0.08, 0.08) * side) for x, y in corners]
    rows = []
    for (x, y), (u, v) in zip(corners, seen, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    coefficients = np.linalg.solve(np.array(rows), np.array(seen).ravel())
    fill = tuple(int(level) for level in np.asarray(image).reshape(-1, 3).mean(0))
    image = image.transform(
        image.size, Image.Transform.PERSPECTIVE, tuple(coefficients), Image.Resampling.BICUBIC, fillcolor=fill
    )
    image = image.filter(ImageFilter.GaussianBlur(r.uniform(0.5, 2)))
    light = 0.85 + 0.3 * draw_paper(r, "gradient", side)
    return Image.fromarray(np.clip(np.asarray(image, np.float32) * light, 0, 255).astype(np.uint8))


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as it comes back from a JPEG file."""
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=quality)
        return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def dataset_card(families: Sequence[Family], counts: dict[str, int], size: int, seed: int) -> DatasetCard:
    """Return the card of the dataset, with the package and the licence of each family."""
    data = DatasetCardData(
        license="other",
        license_name="various-open-font-licences",
        pretty_name="Typeface words",
        task_categories=["image-classification"],
    )
    rows = ((f.name, f.package, f.licence().replace("|", " or ")) for f in families)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    facts = {"families": len(families), "size": size, "seed": seed, "table": table}
    facts["flags"] = " ".join(f"--{name} {count}" for name, count in [("classes", len(families)), *counts.items()])
    facts["backgrounds"] = "; ".join(f"{either(RENDERINGS[split].backgrounds)} in `{split}`" for split in counts)
    facts["images"] = ", ".join(f"{count} in `{split}`" for split, count in counts.items())
    return DatasetCard(f"---\n{data}\n---\n{CARD_TEXT.format(**facts)}")


def write_family(family: Family, folder: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Write the images of one family; they do not depend on the other families."""
    for split, count in counts.items():
        r = random.Random(f"{split} {seed} {family.name}")
        images = folder / ("photo/test" if split == "photo" else split) / family.folder
        images.mkdir(parents=True)
        for number in range(count):
            words = draw_words(r, split)
            image = draw_image(r.choice(family.fonts), r, words, size, RENDERINGS[split])
            image.save(images / f"{number:05d}_{'_'.join(words)}.jpg", quality=95)


def write(folder: Path, classes: int, counts: dict[str, int], size: int = 64, seed: int = 0) -> None:
    """Write images to a folder that does not exist yet or is empty, on all cores.

    Args:
        folder: The folder.
        classes: Number of families.
        counts: Number of images per family in each split.
        size: Height and width of the images in pixels.
        seed: Number of the draw.

    Raises:
        UserError: The folder is not empty, packages are missing, or there are not enough families.
    """
    families = choose(classes)
    with whole(folder) as place:
        draw = partial(write_family, folder=place, counts=counts, size=size, seed=seed)
        with ProcessPoolExecutor(
            max_workers=min(len(families), os.cpu_count() or 1),
            mp_context=get_context("spawn"),  # forked processes can inherit locks of other threads
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl+C is for this process, which stops the others
        ) as pool:
            for _ in pool.map(draw, families):
                pass
        with (place / "families.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("class", "family", "package", "licence", "fonts"))
            table.writerows((f.folder, f.name, f.package, f.licence(), len(f.fonts)) for f in families)
        dataset_card(families, counts, size, seed).save(place / "README.md")
    print(f"{folder}: {classes} families; images of each: {counts}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the images, or print the names of the font packages."""
    defaults = {"classes": 200, "train": 250, "test": 25, "photo": 25, "size": 64, "seed": 0}
    options = parse(__doc__.splitlines()[0], PACKAGES, defaults, arguments)
    counts = {split: getattr(options, split) for split in RENDERINGS}
    write(options.folder, options.classes, counts, options.size, options.seed)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
