"""Draw datasets of many similar classes with few images: in which typeface is a word set, or which word is it?

    apt-get install --no-install-recommends $(python -m tools.typefaces --packages)
    python -m tools.typefaces data/typefaces
    python -m tools.typefaces data/typefaces_2 --skip 100
    python -m tools.typefaces data/typefaces_3 --skip 200
    python -m tools.typefaces data/reading --by-word

The classes are families of Debian's font packages; the draws share none. No word of the test images occurs in the
training images of its family. With `--by-word` the classes are words of similar letters, and no typeface of the test
images occurs in the training images. The images, in `FOLDER/{train,test}/CLASS/NAME.png`, depend only on the arguments
and the versions of the packages and of Pillow. The licences of the typefaces differ: whoever publishes images or
weights has to name them.
"""

import argparse
import hashlib
import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from frskd_timm.errors import UserError
from tools.whole import whole

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
SIMILAR = "aceosun"  # letters of the words with --by-word
WORDS = 8784  # three-letter words that may be in the test images; 8 more may be in the training images
Images = dict[tuple[str, str], Image.Image]  # by split and word
Drawn = Iterator[tuple[str, str, str, Image.Image]]  # split, class, name of the image


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
    try:
        listed = subprocess.run(["dpkg-query", "--listfiles", *packages], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("There is no dpkg-query here; the fonts are those of Debian's packages.") from error
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


def is_for_training(word: str) -> bool:
    """Return whether a word may be in the training images, or else in the test images; its hash decides."""
    return int(md5(word.encode()), 16) % 2 == 0


def draw_words(r: random.Random, counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield split and word, each word only in a split where it may be; raise UserError if there are too few."""
    for split, count in counts.items():
        if count > WORDS:
            raise UserError(f"--{split} is at most {WORDS}, because each image has a word of its own, not {count}.")
        words: set[str] = set()
        while len(words) < count:
            word = "".join(r.choice(ascii_lowercase) for _ in range(3))
            if (split == "train") == is_for_training(word):
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


def usable(draw_one: Callable[[str, Path], Images], wanted: int) -> Iterator[tuple[str, Images]]:
    """Yield families that look different, and what is drawn of each, in an order that depends on their names only.

    Raises:
        UserError: Packages are missing, or there are fewer families than `wanted`.
    """
    families, seen = find_families(), set()
    for family in sorted(families, key=lambda name: md5(name.encode())):
        try:
            images = draw_one(family, families[family])
        except UnusableError:
            continue
        look = appearance(families[family])
        if look not in seen:
            seen.add(look)
            yield family, images
        if len(seen) == wanted:
            return
    raise UserError(f"There are {len(seen)} usable families, fewer than the {wanted} that were asked for.")


def draw(classes: int, counts: dict[str, int], size: int, skip: int) -> Drawn:
    """Yield images whose classes are families.

    Args:
        classes: Number of families.
        counts: Number of images per family in each split.
        size: Height and width of the images in pixels.
        skip: Number of families of an earlier draw, which are left out.

    Raises:
        UserError: Packages are missing, or there are not enough families.
    """
    found = usable(partial(draw_family, counts=counts, size=size), skip + classes)
    for family, images in itertools.islice(found, skip, None):
        for (split, word), image in images.items():
            yield split, family, word, image


def draw_by_word(classes: int, counts: dict[str, int], size: int, skip: int) -> Drawn:
    """Yield images whose classes are words, each in as many families as it has images in a split; see `draw`."""
    every = ["".join(letters) for letters in itertools.product(SIMILAR, repeat=3)]
    if classes > len(every):
        raise UserError(f"With --by-word there are {len(every)} words, fewer than --classes {classes}.")
    words = sorted(random.Random("words").sample(every, classes))

    def draw_one(family: str, path: Path) -> Images:
        r = random.Random(f"{family} by word")
        try:
            font = ImageFont.truetype(path, 80)
            return {("", word): draw_image(font, r, word, size) for word in words}
        except OSError as error:
            raise UnusableError from error

    found = itertools.islice(usable(draw_one, skip + sum(counts.values())), skip, None)
    for split, count in counts.items():
        for family, images in itertools.islice(found, count):
            for (_, word), image in images.items():
                yield split, word, family, image


def write(
    folder: Path,
    classes: int = 100,
    train: int = 20,
    test: int = 20,
    size: int = 64,
    skip: int = 0,
    by_word: bool = False,
) -> None:
    """Write images to a folder that does not exist yet or is empty; see `draw` and `draw_by_word`."""
    drawn = (draw_by_word if by_word else draw)(classes, {"train": train, "test": test}, size, skip)
    with whole(folder) as place:
        for split, *names, image in drawn:
            name, file = ("".join(letter if letter.isalnum() else "_" for letter in text) for text in names)
            path = place / split / name / f"{file}.png"
            if path.exists():
                raise UserError(f"The names of two typefaces or words would both be that of {path}.")
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    print(f"{folder}: {classes} classes, {train} training and {test} test images of each")


def parse(
    description: str,
    packages: Sequence[str],
    defaults: Mapping[str, int],
    arguments: Sequence[str] | None,
    switches: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """Parse a folder, numbers and switches with their help; `--packages` prints the names of the packages and exits."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, nargs="?")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    for name, text in (switches or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--packages", action="store_true", help="print the names of the Debian packages and exit")
    options = parser.parse_args(arguments)
    if options.packages:
        print(*packages)
        parser.exit()
    if options.folder is None:
        parser.error("give the folder for the images")
    for name in defaults:
        least = 0 if name in ("skip", "seed") else 1
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(options, name)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the images, or print the names of the font packages."""
    defaults = {"classes": 100, "train": 20, "test": 20, "size": 64, "skip": 0}
    switches = {"by-word": "the classes are words, in other typefaces for testing than for training"}
    options = parse(__doc__.splitlines()[0], PACKAGES, defaults, arguments, switches)
    write(options.folder, **{name: getattr(options, name) for name in defaults}, by_word=options.by_word)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
