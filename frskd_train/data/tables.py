"""Read a dataset from the files of one folder: saved by datasets, images with a metadata file, parquet or arrow."""

import glob
import os
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from frskd_timm.errors import UserError, first_line
from frskd_train.data.columns import Splits
from frskd_train.data.folder import SPLIT_NAMES, TRAIN_SPLITS, VALIDATION_SPLITS, folders_in, images_below, unreadable
from frskd_train.errors import listed

READ_WHOLE = 2**30  # size in bytes up to which parquet files are read into memory, without datasets' cache
TEST_NAMES = ("eval", "evaluation")  # further names of the test split, as in datasets
_SPLIT_WORDS = "|".join((*TRAIN_SPLITS, *VALIDATION_SPLITS, *TEST_NAMES))
SPLIT_IN_FILE_NAME = re.compile(rf"(?<![a-z])({_SPLIT_WORDS})(?![a-z])")
METADATA_HINT = "A table of image files and labels is called metadata.csv or metadata.jsonl, with a column file_name."
Files = dict[str, list[str]]  # paths by split


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by datasets' `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def has_tables(folder: Path, *endings: str) -> bool:
    """Return whether a folder or one of its subfolders holds tables, by default parquet or arrow files."""
    try:
        files = [name for place in (folder, *folders_in(folder)) for name in os.listdir(place)]
    except OSError as error:
        raise unreadable(error) from error
    return any(Path(name).suffix in (endings or (".parquet", ".arrow")) for name in files)


def has_metadata(folder: Path) -> bool:
    """Return whether a folder of images describes them in a metadata file, as datasets' imagefolder reads it."""
    return any(map(_is_described, (folder, *folders_in(folder))))


def _is_described(folder: Path) -> bool:
    if any(os.path.exists(folder / f"metadata{ending}") for ending in (".jsonl", ".parquet")):
        return True
    if not os.path.exists(table := folder / "metadata.csv"):
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return "file_name" in file.readline()


def _described_files(folder: Path) -> Files:
    """Group the files beside metadata files by split; datasets would guess it from every word in a file's name.

    Raises:
        UserError: Several folders have metadata, and not all of them are named after a split of their own; one metadata
            file describes several splits; or there is none for the training images.
    """
    inside = _splits_with_images(folder)
    if _is_described(folder):
        if len(inside) > 1:
            text = "has one metadata file for several splits"
            raise UserError(f"--dataset {folder} {text} ({listed(inside)}): put one into the folder of each split.")
        return {"train": [f"{glob.escape(str(folder))}/**"]}
    if bare := [name for name in inside if name.lower() in TRAIN_SPLITS and not _is_described(folder / name)]:
        raise UserError(f"--dataset {folder}: {listed(bare)} has no metadata file, but another folder has one: add it.")
    parts = [part for part in folders_in(folder) if _is_described(part)]
    files = {_split_of(Path(part.name)): [f"{glob.escape(str(part))}/**"] for part in parts}
    if "" in files or len(files) < len(parts):
        raise UserError(
            f"--dataset {folder}: {listed([part.name for part in parts])} have metadata; name them after their splits, "
            "such as train, val and test, or give only one of them as --dataset."
        )
    return files


def _splits_with_images(folder: Path) -> list[str]:
    return [sub.name for sub in folders_in(folder) if sub.name.lower() in SPLIT_NAMES and any(images_below(sub))]


def metadata_notes(folder: Path, splits: Splits) -> tuple[str, ...]:
    """Return notes about images that no metadata file describes; `splits` are those of `read_tables`."""
    if _is_described(folder):
        places, bare = [folder], []
    else:
        places = [sub for sub in folders_in(folder) if _is_described(sub)]
        bare = [name for name in _splits_with_images(folder) if not _is_described(folder / name)]
    notes = [f"Left out, as images without a metadata file: {listed(bare)}."] if bare else []
    used = 0
    for split in splits.values():
        used += len(split) * sum(isinstance(feature, datasets.Image) for feature in split.features.values())
    if (unlisted := sum(len([*images_below(place)]) for place in places) - used) > 0:
        notes.append(f"Left out, as images that the metadata do not list: {unlisted}.")
    return tuple(notes)


def read_tables(folder: Path) -> Splits:
    """Read a folder of tables: saved by datasets, images with a metadata file, parquet or arrow files."""
    try:
        if is_saved(folder):
            loaded = datasets.load_from_disk(str(folder))
            return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        if has_metadata(folder):
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
        hint = f" {METADATA_HINT}" if has_tables(folder, ".csv", ".jsonl") else ""
        raise UserError(
            f"--dataset {folder} holds neither class folders of images, nor images/ and masks/, nor parquet or arrow "
            f"files, nor a dataset saved by datasets' save_to_disk.{hint}"
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
        for top in {Path(file).relative_to(folder).parts[0] for file in files}:
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
                    raise UserError(
                        f"Column {column} has different classes in {first} and in {file}: keep only one of these files."
                    )
