"""Find the dataset given as `--dataset` and return its splits, without reading images."""

import os
import re
from pathlib import Path

import datasets

from frskd_timm.errors import UserError
from frskd_train.data.files import SAMPLE_NAME, Source, brief, has_metadata, is_saved, read_files, read_sample
from frskd_train.data.folder import folders_in, is_image_folder, is_voc_folder, read_image_folder, read_voc
from frskd_train.data.images import printable
from frskd_train.data.scenes import SCENES_NAME, composed_source
from frskd_train.errors import suggest
from frskd_train.settings import DataSettings

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_source(settings: DataSettings) -> Source:
    """Find the dataset that the settings name.

    In this order: the included sample and the scenes composed from it, a folder (in Pascal VOC's layout, saved by
    datasets, of parquet or arrow files, of images), a dataset on the Hub. Nothing is written except datasets' own
    cache, and only for datasets from the Hub.

    Raises:
        UserError: There is no such dataset, or its folder has no supported layout.
    """
    wanted = settings.dataset
    if not wanted.strip():
        raise UserError("--dataset is empty; give a folder, the id of a dataset on the Hub, or fashion_mnist_sample.")
    if wanted == SAMPLE_NAME:
        return read_sample()
    if wanted == SCENES_NAME:
        return composed_source(settings.train_num_samples)
    folder = Path(wanted).expanduser()
    if folder.is_file():
        raise UserError(f"--dataset {wanted} is a file; give the folder that holds it.")
    if folder.is_dir():
        return _from_folder(folder, settings)
    if not HUB_ID.fullmatch(wanted) or wanted.startswith("."):
        raise UserError(f"--dataset {wanted} is neither a folder nor the id of a dataset on the Hub{_similar(folder)}")
    return _load_from_hub(settings)


def _from_folder(folder: Path, settings: DataSettings) -> Source:
    for setting, value in (("config", settings.dataset_config), ("revision", settings.dataset_revision)):
        if value is not None:
            raise UserError(f"--dataset-{setting} is for datasets on the Hub, but {folder} is a local folder.")
    class_names: list[str] | None = None
    notes: list[str] = []
    datasets.disable_progress_bars()  # shown while reading local files
    if is_voc_folder(folder):
        splits, class_names = read_voc(folder)
    elif is_image_folder(folder) and not (is_saved(folder) or has_metadata(folder)):
        splits, notes = read_image_folder(folder)
    else:
        splits = read_files(folder)
    return Source.of(printable(folder.resolve().name), splits, class_names=class_names, notes=tuple(notes))


def _load_from_hub(settings: DataSettings) -> Source:
    wanted = settings.dataset
    try:
        loaded = datasets.load_dataset(wanted, name=settings.dataset_config, revision=settings.dataset_revision)
    except Exception as error:  # not found, offline, gated, needs a configuration, holds a script: the error says which
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise UserError(
            f"--dataset {wanted} is not a folder here, and no dataset with this id could be loaded from the "
            f"Hub{offline} ({brief(error)}){_similar(Path(wanted))}"
        ) from error
    return Source.of(wanted, dict(loaded))


def _similar(folder: Path) -> str:
    """Suggest a folder with a similar name, as the end of a sentence."""
    beside = folders_in(folder.parent) if folder.parent.is_dir() else []
    return suggest(folder.name, [found.name for found in beside], within=folder.parent)
