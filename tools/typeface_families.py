"""Families of typefaces that a reader can tell apart, from Debian's font packages, with their licences."""

import re
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from frskd_timm.errors import UserError
from tools.typefaces import ADF, OTHERS, md5, read_fonts

MORE = (
    "3270", "adobe-sourcesans3", "agave", "anonymous-pro", "atkinson-hyperlegible", "averia-gwf", "averia-sans-gwf",
    "averia-serif-gwf", "b612", "beteckna", "cantarell", "cardo", "cascadia-code", "century-catalogue", "clear-sans",
    "cmu", "compagnon", "crosextra-caladea", "crosextra-carlito", "elstob", "fantasque-sans", "firacode",
    "freefont-otf", "georgewilliams", "gfs-artemisia", "gfs-didot", "gfs-neohellenic", "go", "hack-ttf", "hermit",
    "inconsolata", "inter", "jetbrains-mono", "joscelyn", "junicode", "karmilla", "klaudia-berenika", "le-murmure",
    "league-mono", "lemonada", "levien-museum", "liberation", "lmodern", "manrope", "millimetre", "monofur",
    "mononoki", "national-park", "ocr-a", "ocr-b", "open-sans", "osifont", "paratype", "roadgeek", "roboto-unhinted",
    "routed-gothic", "sil-andika", "sil-charis", "sil-galatia", "sil-gentiumplus", "smiley-sans", "sn-pro",
    "solide-mirage", "stix", "texgyre", "tiresias", "uralic", "yrsa-rasa", "kode-mono", "croscore",
    "culmus", "hosny-amiri", "nanum", "smc-manjari", "smc-chilanka", "arundina", "sil-harmattan", "sil-padauk",
    "tlwg-loma-ttf", "tlwg-purisa-ttf", "tlwg-norasi-ttf",
)  # fmt: skip
LEFT_OUT = ("aenigma",)  # hundreds of display faces that few people will meet
NAMES = [*MORE, *(name for name in OTHERS if name not in LEFT_OUT), *(f"adf-{name}" for name in ADF)]
PACKAGES = [f"fonts-{name}" for name in NAMES]
OTHER = re.compile("italic|oblique|slant|cond|narrow|outline|inverted|sharp|math|quran|D050000L", re.IGNORECASE)
VARIANTS = {
    "alternates",
    "bible",
    "caps",
    "classic",
    "demi",
    "light",
    "medium",
    "minus",
    "nf",
    "nl",
    "pl",
    "semibold",
    "thin",
    "z",
}
LICENCES = ("GUST Font License", "SIL Open Font License", "GNU General Public License")
ALIKE = 0.9  # correlation of two families' letters from which on they count as one


@dataclass
class Family:
    """A family of typefaces with its upright fonts, the regular one first."""

    name: str
    package: str
    fonts: list[Path]

    @property
    def folder(self) -> str:
        """Return the name of the class."""
        return re.sub(r"[^0-9A-Za-z]+", "_", self.name).strip("_")

    def licence(self) -> str:
        """Return the licence that Debian's copyright file states for the font, or that an older file mentions."""
        text = Path(f"/usr/share/doc/{self.package}/copyright").read_text(encoding="utf-8", errors="replace")
        stated = re.search(r"^Files:\s*\*.*?^License:[ \t]*(\S[^\n]*)", text, re.MULTILINE | re.DOTALL)
        if stated:
            return stated[1].strip()
        mentioned = (name for name in LICENCES if name.lower() in " ".join(text.split()).lower())
        return next(mentioned, f"see the copyright file of {self.package}")


def find_families() -> list[Family]:
    """Return the upright families with all Latin letters, sorted by name.

    Raises:
        UserError: A package is not installed.
    """
    families: dict[str, Family] = {}
    for package in PACKAGES:
        for path, name, style in read_fonts([package], ascii_letters, "tools.typeface_words"):
            if not OTHER.search(f"{name} {style}"):
                key = name.replace(" ", "").lower()  # "CabinSketch" is a weight of "Cabin Sketch"
                fonts = families.setdefault(key, Family(name, package, [])).fonts
                fonts.insert(0 if style.lower() in ("regular", "book", "roman", "medium") else len(fonts), path)
    return [families[key] for key in sorted(families)]


def choose(classes: int) -> list[Family]:
    """Return families that a reader can tell apart: no copies and no variants (`X Light` beside `X`).

    Raises:
        UserError: Packages are missing, or there are not enough families.
    """
    chosen: list[Family] = []
    shapes = np.zeros((0, 4 * 96 * 40), np.float32)
    found = find_families()
    names = {family.name for family in found}
    for family in sorted(found, key=lambda family: md5(family.name.encode())):
        if len(chosen) == classes:
            break
        base, _, last = family.name.rpartition(" ")
        if base in names and last.lower() in VARIANTS:
            continue
        shape = letters(family.fonts[0])
        if shape is not None and (shapes @ shape < ALIKE).all():
            chosen.append(family)
            shapes = np.vstack([shapes, shape])
    if len(chosen) < classes:
        raise UserError(f"There are {len(chosen)} families that differ visibly, fewer than --classes {classes}.")
    return sorted(chosen, key=lambda family: family.folder)


def letters(path: Path) -> np.ndarray | None:
    """Return the standardised pixels of some words in a font, or None where it leaves no mark."""
    parts = []
    for word in ("hand", "gloves", "quick", "fjmpbt"):
        marks = np.asarray(set_text(path, word).resize((96, 40), Image.Resampling.BILINEAR), np.float32).ravel()
        if marks.std() < 1:
            return None
        parts.append((marks - marks.mean()) / marks.std())
    return np.concatenate(parts) / np.sqrt(4 * 96 * 40)


def set_text(path: Path, text: str, spacing: int = 8) -> Image.Image:
    """Set one line or several in white on black, cut to their size; `spacing` in pixels, letters are about 80 high."""
    font = ImageFont.truetype(path, 80)
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = map(round, probe.multiline_textbbox((0, 0), text, font, spacing=spacing))
    block = Image.new("L", (max(right - left, 1) + 8, max(bottom - top, 1) + 8), 0)
    ImageDraw.Draw(block).multiline_text((4 - left, 4 - top), text, 255, font, spacing=spacing)
    return block
