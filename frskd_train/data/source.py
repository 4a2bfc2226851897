"""Find the dataset given as `--dataset` and return its splits, without reading images."""

import glob
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import metadata_load

from frskd_timm.errors import UserError, first_line
from frskd_timm.export.folder import CARD
from frskd_train.data.columns import Splits, listed
from frskd_train.data.folder import (
    SPLIT_NAMES,
    TRAIN_SPLITS,
    VALIDATION_SPLITS,
    folders_in,
    images_below,
    is_image_folder,
    read_image_folder,
    split_folders,
)
from frskd_train.data.images import printable
from frskd_train.data.mask_folder import is_voc_folder, mask_folders, read_masks, read_voc
from frskd_train.data.scenes import SAMPLE_FOLDER, compose_splits
from frskd_train.errors import suggest
from frskd_train.settings import DataSettings

SAMPLE_NAME, SCENES_NAME = "fashion_mnist_sample", "fashion_mnist_scenes"
SAMPLE_ID = "zalando-datasets/fashion_mnist"
SAMPLE_LICENSE, SAMPLE_HOMEPAGE = "mit", "https://github.com/zalandoresearch/fashion-mnist"
READ_WHOLE = 2**30  # size in bytes up to which parquet files are read into memory, without datasets' cache
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TEST_NAMES = ("eval", "evaluation")  # further names of the test split, as in datasets
_SPLIT_WORDS = "|".join((*TRAIN_SPLITS, *VALIDATION_SPLITS, *TEST_NAMES))
SPLIT_IN_FILE_NAME = re.compile(rf"(?<![a-z])({_SPLIT_WORDS})(?![a-z])")
TABLE = "A table of image files and labels is called metadata.csv or metadata.jsonl, with a column file_name."
Files = dict[str, list[str]]  # paths by split


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
    if folder.is_file():
        table = folder.suffix in (".csv", ".jsonl")
        raise UserError(f"--dataset {wanted} is a file; give the folder that holds it.{f' {TABLE}' if table else ''}")
    if folder.is_dir():
        name = printable(folder.resolve().name)
        splits, class_names, notes = _read_folder(folder, settings, has_masks)
    elif HUB_ID.fullmatch(wanted) and not wanted.startswith("."):
        splits = _load_from_hub(settings)
    else:
        raise UserError(f"--dataset {wanted} is neither a folder nor the id of a dataset on the Hub{_similar(folder)}")
    slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-._").lower() or "dataset"
    known = next(iter(splits.values())).info
    license = known.license or _stated_license(folder / CARD)
    return Source(slug, name, splits, license or None, known.homepage or None, class_names, notes)


def read_sample() -> Source:
    """Return the included sample of Fashion-MNIST."""
    return Source(SAMPLE_NAME, SAMPLE_ID, _read_files(SAMPLE_FOLDER), SAMPLE_LICENSE, SAMPLE_HOMEPAGE)


def _read_folder(
    folder: Path, settings: DataSettings, has_masks: bool
) -> tuple[Splits, list[str] | None, tuple[str, ...]]:
    """Return the splits of a folder, class names that are not in the rows, and notes for the user."""
    _refuse_hub_settings(settings, f"{folder} is a local folder")
    datasets.disable_progress_bars()  # shown while reading local files
    if is_voc_folder(folder):
        return read_voc(folder)
    if _is_saved(folder) or _has_metadata(folder):
        return _read_files(folder), None, ()
    if folders := mask_folders(folder, has_masks):
        return read_masks(folder, folders)
    if not is_image_folder(folder):
        return _read_files(folder), None, ()
    if _has_tables(folder) and not split_folders(folder):
        note = f"The parquet or arrow files are read, not the images beside them in {folder}."
        return _read_files(folder), None, (note,)
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
    wanted = settings.dataset
    try:
        return dict(datasets.load_dataset(wanted, name=settings.dataset_config, revision=settings.dataset_revision))
    except Exception as error:  # not found, offline, gated, needs a configuration, holds a script: the error says which
        offline = " (HF_HUB_OFFLINE is set)" if datasets.config.HF_HUB_OFFLINE else ""
        raise UserError(
            f"--dataset {wanted} is not a folder here, and no dataset with this id could be loaded from the "
            f"Hub{offline} ({type(error).__name__}: {first_line(error)[:300]}){_similar(Path(wanted))}"
        ) from error


def _similar(folder: Path) -> str:
    """Suggest a folder with a similar name, as the end of a sentence."""
    beside = folders_in(folder.parent) if folder.parent.is_dir() else []
    return suggest(folder.name, [found.name for found in beside], within=folder.parent)


def _is_saved(folder: Path) -> bool:
    """Return whether a folder was written by datasets' `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _has_tables(folder: Path) -> bool:
    """Return whether a folder or one of its subfolders holds parquet or arrow files."""
    files = (file for place in (folder, *folders_in(folder)) for file in place.iterdir())
    return any(file.suffix in (".parquet", ".arrow") for file in files)


def _has_csv(folder: Path) -> bool:
    """Return whether a folder or one of its subfolders holds a table as text."""
    return any(file.suffix in (".csv", ".jsonl") for place in (folder, *folders_in(folder)) for file in place.iterdir())


def _has_metadata(folder: Path) -> bool:
    """Return whether a folder of images describes them in a metadata file, as datasets' imagefolder reads it."""
    return any(map(_is_described, (folder, *folders_in(folder))))


def _is_described(folder: Path) -> bool:
    if any((folder / f"metadata{ending}").exists() for ending in (".jsonl", ".parquet")):
        return True
    if not (table := folder / "metadata.csv").exists():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return "file_name" in file.readline()


def _described_files(folder: Path) -> Files:
    """Group the files beside metadata files by split; datasets would guess it from every word in a file's name.

    Raises:
        UserError: Several folders have metadata, and not all of them are named after a split of their own; or one
            metadata file describes several splits.
    """
    if _is_described(folder):
        inside = [sub.name for sub in folders_in(folder) if sub.name.lower() in SPLIT_NAMES and any(images_below(sub))]
        if len(inside) > 1:
            text = "has one metadata file for several splits"
            raise UserError(f"--dataset {folder} {text} ({listed(inside)}): put one into the folder of each split.")
        return {"train": [f"{glob.escape(str(folder))}/**"]}
    parts = [part for part in folders_in(folder) if _is_described(part)]
    files = {_split_of(Path(part.name)): [f"{glob.escape(str(part))}/**"] for part in parts}
    if "" in files or len(files) < len(parts):
        raise UserError(
            f"--dataset {folder}: {listed([part.name for part in parts])} have metadata; name them after their splits, "
            "such as train, val and test, or give one of them."
        )
    return files


def _read_files(folder: Path) -> Splits:
    """Read a folder of tables: saved by datasets, images with a metadata file, parquet or arrow files."""
    try:
        if _is_saved(folder):
            loaded = datasets.load_from_disk(str(folder))
            return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        if _has_metadata(folder):
            return dict(datasets.load_dataset("imagefolder", data_files=_described_files(folder)))
        if found := _files_by_split(folder, ".parquet"):
            return _read_parquet(found)
        found = _files_by_split(folder, ".arrow")
        read = {split: [datasets.Dataset.from_file(file) for file in files] for split, files in found.items()}
        splits = {split: datasets.concatenate_datasets(parts) for split, parts in read.items()}
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # datasets wraps what is wrong in "An error occurred"
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {first_line(cause)[:300]}"
        raise UserError(f"The files of --dataset {folder} could not be read ({reason}).") from error
    if not splits:
        raise UserError(
            f"--dataset {folder} holds neither class folders of images, nor images/ and masks/, nor parquet or arrow "
            f"files, nor a dataset saved by datasets' save_to_disk.{f' {TABLE}' if _has_csv(folder) else ''}"
        )
    return splits


def _files_by_split(folder: Path, ending: str) -> Files:
    """Group the files of a folder by the split in their path; if no path has one, all are training files.

    Raises:
        UserError: Only some paths have one, or several folders have splits of their own, as in a dataset with configs.
    """
    by_split: Files = {}
    for file in sorted(file for file in folder.rglob(f"*{ending}") if not file.name.startswith(".")):
        split = _split_of(file.relative_to(folder).with_suffix(""))
        by_split.setdefault(split, []).append(str(file))
    others = by_split.pop("", [])
    named: dict[str, set[str]] = {}  # the splits in each folder that is none itself
    for split, files in by_split.items():
        for top in {Path(file).relative_to(folder).parts[0] for file in files} if split else ():
            if (folder / top).is_dir() and not _split_of(Path(top)):
                named.setdefault(top, set()).add(split)
    if len(several := sorted(top for top, splits in named.items() if len(splits) > 1)) > 1:
        raise UserError(f"--dataset {folder} contains several datasets with splits ({listed(several)}); choose one.")
    if others and by_split:
        others = [Path(file).relative_to(folder).as_posix() for file in others]
        raise UserError(
            f"--dataset {folder}: some paths name a split ({listed(list(by_split))}), but not {listed(others)}; "
            "rename or move them."
        )
    return {"train": others} if others else by_split


def _split_of(path: Path) -> str:
    """Return the last split in the name of a file, else in that of the nearest folder that names one, else ''."""
    named = (SPLIT_IN_FILE_NAME.findall(part.lower()) for part in reversed(path.parts))
    split = next((splits[-1] for splits in named if splits), "")
    return "test" if split in TEST_NAMES else split


def _read_parquet(by_split: Files) -> Splits:
    for files in by_split.values():
        _refuse_other_names(files)
    if sum(os.path.getsize(file) for files in by_split.values() for file in files) > READ_WHOLE:
        return dict(datasets.load_dataset("parquet", data_files=by_split))
    tables = {split: pa.concat_tables([pq.read_table(file) for file in files]) for split, files in by_split.items()}
    return {split: datasets.Dataset(table) for split, table in tables.items()}


def _refuse_other_names(files: list[str]) -> None:
    """Raise UserError if parquet files number the names of their classes differently, which their union ignores."""
    numbered: dict[str, tuple[list[str], str]] = {}
    for file in files:
        for column, feature in datasets.Features.from_arrow_schema(pq.read_schema(file)).items():
            if isinstance(feature, datasets.ClassLabel):
                names, first = numbered.setdefault(column, (feature.names, file))
                if names != feature.names:
                    raise UserError(f"Column {column} has other classes in {first} than in {file}: give one of them.")
