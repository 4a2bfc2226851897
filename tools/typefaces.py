"""Draw a dataset of many similar classes with few images: in which typeface is a word set?

    apt-get install --no-install-recommends $(python -m tools.typefaces --packages)
    python -m tools.typefaces data/typefaces
    python -m tools.typefaces data/typefaces_2 --skip 100
    python -m tools.typefaces data/typefaces_3 --skip 200

The classes are families of Debian's font packages; the draws share none. The images, in
`FOLDER/{train,test}/FAMILY/WORD.png`, depend only on the arguments and the versions of the packages and of Pillow. No
word of the test images occurs in the training images of its family. The licences of the typefaces differ: whoever
publishes images or weights has to name them.
"""

import argparse
import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from frskd_timm.errors import UserError

ADF = (
    "accanthis", "baskervald", "berenis", "gillius", "ikarius", "irianis", "libris", "mekanus", "oldania", "romande",
    "solothurn", "switzera", "tribun", "universalis", "verana",
)  # fmt: skip
OTHERS = (
    "aenigma", "dustin", "sjfonts", "essays1743", "urw-base35", "dancingscript", "lobster", "lobstertwo",
    "kaushanscript", "cabin", "cabinsketch", "comfortaa", "comic-neue", "courier-prime", "dosis", "ebgaramond",
    "fanwood", "femkeklaver", "goudybookletter", "humor-sans", "isabella", "junction", "jura", "kristi", "lato",
    "league-spartan", "leckerli-one", "lindenhill", "linuxlibertine", "montserrat", "oldstandard", "play", "prociono",
    "quattrocento", "quicksand", "rufscript", "tomsontalks", "tuffy", "vollkorn", "yanone-kaffeesatz", "breip",
    "bebas-neue", "chomsky", "cherrybomb", "dkg-handwriting", "ecolier-court", "karla", "sora", "gnutypewriter",
    "blankenburg", "okolaks", "opendyslexic", "roboto-slab", "ubuntu-title", "allerta", "bwht", "eurofurence",
    "radisnoir", "staypuft", "summersby", "f500", "engadget", "dejavu-core",
)  # fmt: skip
PACKAGES = [f"fonts-{name}" for name in (*OTHERS, *(f"adf-{name}" for name in ADF))]
Images = dict[tuple[str, str], Image.Image]  # by split and word


class UnusableError(Exception):
    """A typeface cannot be drawn, or hardly leaves a mark."""


def find_families() -> dict[str, Path]:
    """Return one font file of each family with all lower-case letters, the regular style if there is one.

    Raises:
        UserError: A package is not installed.
    """
    families: dict[str, Path] = {}
    for path, family, style in read_fonts(PACKAGES, ascii_lowercase, "tools.typefaces"):
        if family not in families or style.lower() in ("regular", "book", "roman"):
            families[family] = path
    return families


def read_fonts(packages: Sequence[str], letters: str, module: str) -> Iterator[tuple[Path, str, str]]:
    """Yield file, family and style of the fonts in installed packages that have all `letters`, sorted by file.

    Raises:
        UserError: A package is not installed; `module` is the one that lists the packages.
    """
    listed = subprocess.run(["dpkg-query", "--listfiles", *packages], capture_output=True, text=True)
    if listed.returncode:
        raise UserError(
            f"Some font packages are missing: run apt-get install --no-install-recommends $(python -m {module} "
            "--packages)."
        )
    for path in sorted({Path(line) for line in listed.stdout.splitlines() if line.endswith((".ttf", ".otf"))}):
        try:
            font = TTFont(path, lazy=True)
            family, style = font["name"].getBestFamilyName(), font["name"].getBestSubFamilyName() or ""
            complete = set(map(ord, letters)) <= set(font.getBestCmap())
        except (TTLibError, KeyError, TypeError):  # damaged, or without names or a character map
            continue
        if family and complete:
            yield path, family, style


def draw_words(r: random.Random, counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield split and word; a word's hash decides whether it may be in the training or in the test images."""
    for split, count in counts.items():
        words: set[str] = set()
        while len(words) < count:
            word = "".join(r.choice(ascii_lowercase) for _ in range(3))
            if (split == "train") == (int(md5(word.encode()), 16) % 2 == 0):
                words.add(word)
        yield from ((split, word) for word in sorted(words))


def draw_image(font: ImageFont.FreeTypeFont, r: random.Random, word: str, size: int) -> Image.Image:
    """Set a word with random size, rotation, place, blur, gray values and noise on a square page."""
    left, top, right, bottom = font.getbbox(word)
    if right - left < 8 or bottom - top < 8:
        raise UnusableError
    line = Image.new("L", (int(right - left) + 20, int(bottom - top) + 20), 0)
    ImageDraw.Draw(line).text((10 - left, 10 - top), word, fill=255, font=font)
    line = line.rotate(r.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
    scale = r.uniform(0.75, 0.98) * size / max(line.size)
    width, height = (max(1, round(side * scale)) for side in line.size)
    page = Image.new("L", (size, size), 0)
    place = r.randint(0, size - width), r.randint(0, size - height)
    page.paste(line.resize((width, height), Image.Resampling.LANCZOS), place)
    if r.random() < 0.3:
        page = page.filter(ImageFilter.GaussianBlur(0.5))
    marks = np.asarray(page, np.float32) / 255
    if marks.mean() < 0.01:
        raise UnusableError
    ink, paper = r.uniform(0, 90), r.uniform(150, 255)
    noise = np.random.default_rng(r.getrandbits(32)).normal(0, 6, marks.shape)
    return Image.fromarray(np.clip(paper + (ink - paper) * marks + noise, 0, 255).astype(np.uint8))


def draw_family(family: str, path: Path, counts: dict[str, int], size: int) -> Images:
    """Draw the images of a family; raise UnusableError."""
    r = random.Random(family)
    words = list(draw_words(r, counts))
    try:
        font = ImageFont.truetype(path, 80)
        return {(split, word): draw_image(font, r, word, size) for split, word in words}
    except OSError as error:  # FreeType cannot read it
        raise UnusableError from error


def appearance(path: Path) -> str:
    """Return a hash of how a font looks; some families are copies of others."""
    image = Image.new("L", (400, 80), 0)
    ImageDraw.Draw(image).text((10, 10), "handgloves", fill=255, font=ImageFont.truetype(path, 40))
    return md5(image.tobytes())


def md5(content: bytes) -> str:
    """Return the MD5 of some bytes in hexadecimal digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def draw(classes: int, counts: dict[str, int], size: int = 64, skip: int = 0) -> Iterator[tuple[str, Images]]:
    """Yield families and their images.

    Args:
        classes: Number of families.
        counts: Number of images per family in each split.
        size: Height and width of the images in pixels.
        skip: Number of families of an earlier draw, which are left out.

    Raises:
        UserError: Packages are missing, or there are not enough families.
    """
    families, seen, usable = find_families(), set(), 0
    for family in sorted(families, key=lambda name: md5(name.encode())):
        try:
            images = draw_family(family, families[family], counts, size)
        except UnusableError:
            continue
        look = appearance(families[family])
        if look in seen:
            continue
        seen.add(look)
        usable += 1
        if usable > skip:
            yield family, images
        if usable == skip + classes:
            return
    raise UserError(f"There are {usable} usable families, fewer than --classes {classes} after --skip {skip}.")


def write(folder: Path, classes: int = 100, train: int = 20, test: int = 20, size: int = 64, skip: int = 0) -> None:
    """Write images to a folder that does not exist yet or is empty; see `draw`."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"The folder {folder} is not empty.")
    for family, images in draw(classes, {"train": train, "test": test}, size, skip):
        name = "".join(letter if letter.isalnum() else "_" for letter in family)
        for (split, word), image in images.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / split / name / f"{word}.png")
    print(f"{folder}: {classes} families, {train} training and {test} test images of each")


def parse(
    description: str, packages: Sequence[str], defaults: Mapping[str, int], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a folder and numbers; `--packages` prints the names of the font packages and exits."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, nargs="?")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--packages", action="store_true", help="print the names of the Debian packages and exit")
    options = parser.parse_args(arguments)
    if options.packages:
        print(*packages)
        parser.exit()
    if options.folder is None:
        parser.error("give the folder for the images")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the images, or print the names of the font packages."""
    defaults = {"classes": 100, "train": 20, "test": 20, "size": 64, "skip": 0}
    options = parse(__doc__.splitlines()[0], PACKAGES, defaults, arguments)
    write(options.folder, **{name: getattr(options, name) for name in defaults})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
