"""An exported segmentation student read back: its config, its weights."""

from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError
from frskd_timm.export.load import CONFIG, read_json, read_weights
from frskd_timm.segmentation.student import SegmentationStudent


def is_segmentation(folder: str | Path) -> bool:
    """Whether a folder's `config.json` describes a segmentation student."""
    try:
        return "backbone" in read_json(Path(folder) / CONFIG)
    except UserError:
        return False


def read_segmentation_config(folder: str | Path) -> dict[str, Any]:
    """The folder's `config.json`: the arguments of `SegmentationStudent`.

    Raises:
        UserError: It is missing, no JSON, or describes something else.
    """
    config = read_json(Path(folder) / CONFIG)
    if not {"backbone", "num_classes"} <= config.keys():
        raise UserError(f"{Path(folder) / CONFIG} is not a segmentation student's config.")
    return config


def check_segmentation(folder: str | Path) -> None:
    """Makes sure that the folder's weights are the student's that its config describes, all of them and finite.

    Raises:
        UserError: They are not; the sentence names the first keys at fault.
    """
    config = read_segmentation_config(folder)
    try:
        plain = SegmentationStudent(**config)
    except TypeError as error:
        raise UserError(f"{Path(folder) / CONFIG} does not describe a segmentation student: {error}") from None
    read_weights(Path(folder), plain, config["backbone"])


def load_segmentation(folder: str | Path) -> SegmentationStudent:
    """The student in a folder, in eval mode.

    Raises:
        UserError: A file is missing or unreadable, or the weights do not fit.
    """
    check_segmentation(folder)
    with redirect_stdout(None):  # huggingface_hub prints what it does
        return SegmentationStudent.from_pretrained(folder).eval()
