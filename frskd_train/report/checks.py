"""Checking a student's folder before it is published."""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from frskd_timm.errors import UserError
from frskd_timm.export.folder import CARD, CONFIG, RECIPE, WEIGHTS
from frskd_timm.export.load import read_student
from frskd_train.report.card import EVAL_RESULTS

_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def check_folder(folder: str | Path) -> list[str]:
    """Check that a folder is a complete, loadable student with a valid card.

    Args:
        folder: An exported student.

    Returns:
        The names of the files to publish: weights, config, card, the pictures in the card, and recipe and evaluation
        results if there are any.

    Raises:
        UserError: What is wrong first.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the student/ folder of a finished run.")
    student = read_student(folder)
    student.check()
    names = [WEIGHTS, CONFIG, CARD, *_card_pictures(folder, student.libraries[0])]
    names += [name for name in (RECIPE, EVAL_RESULTS) if (folder / name).is_file()]
    for name in names:
        if Path(name).suffix in (".json", ".md", ".yaml"):
            _check_text(folder / name)
    return names


def _card_pictures(folder: Path, library: str) -> list[str]:
    """Return the pictures that the card shows, after checking the card itself."""
    path = folder / CARD
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: write the card first (frskd_train.report.card.write_card).") from None
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a valid card ({' '.join(str(error).split())}): write it again.") from None
    if card.data.get("library_name") != library:
        raise UserError(
            f"{path} must contain 'library_name: {library}' between its '---' lines, or the Hub cannot load it."
        )
    pictures = []
    for name in dict.fromkeys(_PICTURE.findall(card.text)):
        if "://" in name:
            continue
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not (folder / name).is_file():
            raise UserError(f"{path} shows {name}, which is not in the folder: add the picture or remove the line.")
        pictures.append(name)
    return pictures


def _check_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if _TOKEN.search(text):
        raise UserError(f"{path} contains what looks like a Hugging Face token: remove it before publishing.")
    if path.suffix == ".yaml":
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it first.") from None
