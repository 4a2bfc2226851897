"""Find the dataset given as `--dataset` and return its splits, without reading images."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.folder import CARD
from frskd_train.data.columns import Splits
from frskd_train.data.folder import folders_in, is_image_folder, read_image_folder, split_folders
from frskd_train.data.mask_folder import LAYOUTS, is_voc_folder, mask_folders, read_masks, read_voc
from frskd_train.data.scenes import SAMPLE_FOLDER, compose_splits
from frskd_train.data.tables import METADATA_HINT, has_metadata, has_tables, is_saved, metadata_notes, read_tables
from frskd_train.errors import listed, printable, suggest
from frskd_train.settings import DataSettings

SAMPLE_NAME, SCENES_NAME = "fashion_mnist_sample", "fashion_mnist_scenes"
SAMPLE_ID = "zalando-datasets/fashion_mnist"
SAMPLE_LICENSE, SAMPLE_HOMEPAGE = "mit", "https://github.com/zalandoresearch/fashion-mnist"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A dataset and what is known about it."""

    name: str  # for folders and tags: letters, digits, `_`, `-` and `.` only
    id: str  # on the Hub, or the name of its folder
    splits: Splits
    license: str | None = None  # identifier such as `mit`, if known
    homepage: str | None = None  # URL, if known
    class_names: list[str] | None = None  # if the rows do not contain them
    notes: tuple[str, ...] = ()  # sentences that the user should see


def find_source(settings: DataSettings, has_masks: bool = False) -> Source:
    """Find the dataset that the settings name; with masks, folders beside those of images and masks are ignored.

    In this order: the included sample and the scenes composed from it, a folder (in Pascal VOC's layout, saved by
    datasets, of images and masks, of parquet or arrow files, of classes), a dataset on the Hub. Nothing is written
    except datasets' own cache: for datasets from the Hub, folders with a `metadata` file, and large parquet files.

    Raises:
        UserError: There is no such dataset, or its folder has no supported layout.
    """
    wanted = settings.dataset
    if not wanted.strip():
        raise UserError("--dataset is empty; give a folder, the id of a dataset on the Hub, or fashion_mnist_sample.")
    if wanted in (SAMPLE_NAME, SCENES_NAME):
        _refuse_hub_settings(settings, f"{wanted} is part of this package")
    if wanted == SAMPLE_NAME:
        return read_sample()
    if wanted == SCENES_NAME:
        splits, names = compose_splits(settings.train_num_samples)
        return replace(read_sample(), name=SCENES_NAME, splits=splits, class_names=names)
    folder, name = Path(wanted).expanduser(), wanted
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()
    card: Path | None = folder / CARD
    if folder.is_file():
        hint = f" {METADATA_HINT}" if folder.suffix in (".csv", ".jsonl") else ""
        raise UserError(f"--dataset {wanted} is a file; give the folder that holds it.{hint}")
    if folder.is_dir():
        name = printable(folder.resolve().name)
        splits, class_names, notes = _read_folder(folder, settings, has_masks)
    elif HUB_ID.fullmatch(wanted) and not wanted.startswith("."):
        splits, card = _load_from_hub(settings), _hub_card(settings)
    else:
        raise UserError(f"--dataset {wanted} is neither a folder nor the id of a dataset on the Hub{_similar(folder)}")
    slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-._").lower() or "dataset"
    known = next(iter(splits.values())).info
    license = known.license or (card and _stated_license(card))
    homepage = known.homepage if re.fullmatch(r"https?://[^\s()<>\[\]]+", known.homepage or "") else None
    return Source(slug, name, splits, license or None, homepage, class_names, notes)


def read_sample() -> Source:
    """Return the included sample of Fashion-MNIST."""
    return Source(SAMPLE_NAME, SAMPLE_ID, read_tables(SAMPLE_FOLDER), SAMPLE_LICENSE, SAMPLE_HOMEPAGE)


def _read_folder(
    folder: Path, settings: DataSettings, has_masks: bool
) -> tuple[Splits, list[str] | None, tuple[str, ...]]:
    """Return the splits of a folder, class names that are not in the rows, and notes for the user."""
    _refuse_hub_settings(settings, f"{folder} is a local folder")
    datasets.disable_progress_bars()  # shown while reading local files
    if is_voc_folder(folder):
        return read_voc(folder)
    if is_saved(folder):
        return read_tables(folder), None, ()
    if has_metadata(folder):
        splits = read_tables(folder)
        return splits, None, metadata_notes(folder, splits)
    if folders := mask_folders(folder, has_masks):
        return read_masks(folder, folders)
    if not is_image_folder(folder):
        return read_tables(folder), None, ()
    if has_tables(folder) and not split_folders(folder):
        note = f"The parquet or arrow files are read, not the images beside them in {folder}."
        return read_tables(folder), None, (note,)
    if has_masks:
        raise UserError(f"--dataset {folder} has no masks. {LAYOUTS}")
    splits, notes = read_image_folder(folder)
    return splits, None, notes


def _refuse_hub_settings(settings: DataSettings, problem: str) -> None:
    for setting, value in (("config", settings.dataset_config), ("revision", settings.dataset_revision)):
        if value is not None:
            raise UserError(f"--dataset-{setting} is for datasets on the Hub, but {problem}.")


def _stated_license(card: Path) -> str | None:
    """Return the licence in the metadata of a dataset card, its name if it is none of the Hub's; None without one."""
    try:
        data = (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError):  # a README that is not a card
        return None
    license = data.get("license")
    if license == "other":
        license = data.get("license_name") or license
    return ", ".join(map(str, license)) if isinstance(license, list) else license and str(license)


def _load_from_hub(settings: DataSettings) -> Splits:
    wanted, config, revision = settings.dataset, settings.dataset_config, settings.dataset_revision
    try:
        return dict(datasets.load_dataset(wanted, name=config, revision=revision))
    except Exception as error:  # not found, offline, gated, needs a configuration, holds a script: the error says which
        if configs := _unchosen_configs(settings, error):
            text = f"has the configurations {listed(configs)}; choose one with --dataset-config."
            raise UserError(f"--dataset {wanted} {text}") from error
        variable = "HF_DATASETS_OFFLINE" if "HF_DATASETS_OFFLINE" in os.environ else "HF_HUB_OFFLINE"
        offline = f"; {variable} is set" if datasets.config.HF_HUB_OFFLINE else ""
        raise UserError(
            f"--dataset {wanted} is not a folder here, and no dataset with this id could be loaded from the "
            f"Hub ({type(error).__name__}: {first_line(error)[:300]}{offline}){_similar(Path(wanted))}"
        ) from error


def _unchosen_configs(settings: DataSettings, error: Exception) -> list[str]:
    """Return the configurations of a dataset that could not be loaded because it has none that is set."""
    if not isinstance(error, ValueError):
        return []
    try:
        configs = datasets.get_dataset_config_names(settings.dataset, revision=settings.dataset_revision)
    except Exception:  # then the first error says what is wrong
        return []
    return [] if settings.dataset_config in configs else configs


def _hub_card(settings: DataSettings) -> Path | None:
    """Return the card of a dataset that was just loaded from the Hub, or from its cache; None without one."""
    try:
        revision = settings.dataset_revision
        return Path(hf_hub_download(settings.dataset, CARD, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, OSError):  # no card, or offline and not in the cache
        return None


def _similar(folder: Path) -> str:
    """Suggest another dataset, such as a folder with a similar name, as the end of a sentence."""
    reader, name = folder.parts[0] if folder.parts else "", "/".join(folder.parts[1:])
    if name and reader in ("hfds", "hfids"):  # timm's names
        return f"; without timm's {reader}/, it is --dataset {name}."
    if name and reader in ("tfds", "wds", "torch"):
        return f". timm's {reader}/ is not supported: give a folder, or a dataset on the Hub."
    beside = folders_in(folder.parent) if folder.parent.is_dir() else []
    return suggest(folder.name, [found.name for found in beside], within=folder.parent)
