"""Finds a dataset by what `--dataset` says and gives its splits, without reading an image."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from frskd_timm.errors import UserError, first_line
from frskd_train.data.folder import folders_in, is_image_folder, read_image_folder
from frskd_train.data.images import printable
from frskd_train.data.voc import is_voc_folder, read_voc
from frskd_train.settings import DataSettings

SAMPLE_NAME = "fashion_mnist_sample"
SCENES_NAME = "fashion_mnist_scenes"
SAMPLE_FOLDER = Path(__file__).parent / SAMPLE_NAME
READ_WHOLE = 2**30  # bytes of parquet files up to which they are read at once, past datasets' cache
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SPLIT_IN_FILE_NAME = re.compile(r"(?:^|[^a-z])(train|training|validation|valid|val|dev|test|testing)(?:[^a-z]|$)")


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a dataset beside its rows.

    Attributes:
        name: For folders and tags: letters, digits, `_`, `-` and `.` only.
        id: How to find it: its id on the Hub, or its folder's name.
        license: Identifier such as `mit`, if known.
        homepage: If known.
    """

    name: str
    id: str
    license: str | None = None
    homepage: str | None = None


SAMPLE_INFO = SourceInfo(
    SAMPLE_NAME, "zalando-datasets/fashion_mnist", "mit", "https://github.com/zalandoresearch/fashion-mnist"
)


@dataclass(frozen=True)
class Source:
    """A dataset that was found.

    Attributes:
        info: What is known of it beside its rows.
        splits: By name.
        class_names: Where the rows do not tell.
        notes: Sentences that the user should see.
    """

    info: SourceInfo
    splits: Mapping[str, datasets.Dataset]
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()


def find_source(settings: DataSettings) -> Source:
    """Finds the dataset that the settings name.

    In this order: the sample that ships and the scenes composed from it, a folder (in Pascal VOC's layout, saved by
    datasets, of parquet or arrow files, of images), a dataset on the Hub. Nothing is written but datasets' own cache,
    and that only for what comes from the Hub.

    Raises:
        UserError: There is no such dataset, or its folder holds nothing that is understood.
    """
    wanted = settings.dataset
    if not wanted.strip():
        raise UserError("--dataset is empty; give a folder, the id of a dataset on the Hub, or fashion_mnist_sample.")
    if wanted == SAMPLE_NAME:
        return Source(SAMPLE_INFO, _read_parquet(SAMPLE_FOLDER, sorted(SAMPLE_FOLDER.glob("*.parquet"))))
    if wanted == SCENES_NAME:
        from frskd_train.data.scenes import composed_source  # it composes them from the sample, which is found here

        return composed_source(settings.train_num_samples)
    folder = Path(wanted).expanduser()
    if folder.is_file():
        raise UserError(f"--dataset {wanted} is a file; give the folder that holds it.")
    if folder.is_dir():
        return _from_folder(folder, settings)
    if not HUB_ID.fullmatch(wanted) or wanted.startswith("."):
        raise UserError(f"--dataset {wanted} is neither a folder nor the id of a dataset on the Hub{_similar(folder)}.")
    return _load_from_hub(settings)


def _from_folder(folder: Path, settings: DataSettings) -> Source:
    for setting, value in (("config", settings.dataset_config), ("revision", settings.dataset_revision)):
        if value is not None:
            raise UserError(f"--dataset-{setting} is for datasets on the Hub, but {folder} is a local folder.")
    class_names: list[str] | None = None
    notes: list[str] = []
    with _no_progress_bars():
        if is_voc_folder(folder):
            splits, class_names = read_voc(folder)
        elif _is_class_folders(folder):
            splits, notes = read_image_folder(folder)
        else:
            splits = _read_files(folder)
    known = next(iter(splits.values())).info
    name = printable(folder.resolve().name)
    info = SourceInfo(slug(name), name, known.license or None, known.homepage or None)
    return Source(info, splits, class_names, tuple(notes))


def slug(name: str) -> str:
    """A name that folders and tags can have."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-._").lower() or "dataset"


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _has_metadata(folder: Path) -> bool:
    endings = (".csv", ".jsonl", ".parquet")
    return any((sub / f"metadata{ending}").exists() for sub in (folder, *folders_in(folder)) for ending in endings)


def _is_class_folders(folder: Path) -> bool:
    return not _is_saved(folder) and not _has_metadata(folder) and is_image_folder(folder)


def _read_files(folder: Path) -> dict[str, datasets.Dataset]:
    """Reads a folder of tables: saved by datasets, images with a metadata file, parquet or arrow files."""
    if _is_saved(folder):
        return _load_saved(folder)
    if _has_metadata(folder):
        try:
            return dict(datasets.load_dataset("imagefolder", data_dir=str(folder)))
        except Exception as error:  # whatever datasets' builder stumbles over in the user's folder
            raise UserError(f"{folder} could not be read as images with a metadata file ({_brief(error)}).") from error
    for ending, read in ((".parquet", _read_parquet), (".arrow", _read_arrow)):
        files = sorted(file for file in folder.rglob(f"*{ending}") if not file.name.startswith("."))
        if files:
            return read(folder, files)
    raise UserError(
        f"--dataset {folder} holds neither class folders of images, nor parquet or arrow files, nor a dataset saved by "
        "datasets' save_to_disk."
    )


def _load_saved(folder: Path) -> dict[str, datasets.Dataset]:
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # a half-copied folder fails in many ways inside datasets and pyarrow
        raise UserError(f"--dataset {folder} was saved by datasets but does not load ({_brief(error)}).") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


def _read_parquet(folder: Path, files: list[Path]) -> dict[str, datasets.Dataset]:
    by_split = _by_split(folder, files)
    if not files:
        raise UserError(f"{folder} holds no parquet file; install the package again.")
    try:
        if sum(file.stat().st_size for file in files) > READ_WHOLE:
            names = {split: [str(file) for file in found] for split, found in by_split.items()}
            return dict(datasets.load_dataset("parquet", data_files=names))
        tables = {split: [pq.read_table(file) for file in found] for split, found in by_split.items()}
        return {split: datasets.Dataset(InMemoryTable(pa.concat_tables(parts))) for split, parts in tables.items()}
    except Exception as error:  # damaged files, or files whose columns differ
        raise UserError(f"the parquet files in {folder} could not be read ({_brief(error)}).") from error


def _read_arrow(folder: Path, files: list[Path]) -> dict[str, datasets.Dataset]:
    splits = {}
    try:
        for split, found in _by_split(folder, files).items():
            splits[split] = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in found])
    except Exception as error:
        raise UserError(f"the arrow files in {folder} could not be read ({_brief(error)}).") from error
    return splits


def _by_split(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Sorts files by the split that their path names; files without one are training files."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        named = SPLIT_IN_FILE_NAME.search(file.relative_to(folder).with_suffix("").as_posix().lower())
        by_split.setdefault(named[1] if named else "train", []).append(file)
    return by_split


def _load_from_hub(settings: DataSettings) -> Source:
    wanted = settings.dataset
    try:
        loaded = datasets.load_dataset(wanted, name=settings.dataset_config, revision=settings.dataset_revision)
    except Exception as error:  # not found, offline, gated, needs a configuration, holds a script: datasets says which
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise UserError(
            f"--dataset {wanted} is not a folder here, and no dataset with this id could be loaded from the "
            f"Hub{offline} ({_brief(error)}){_similar(Path(wanted))}."
        ) from error
    splits = dict(loaded)
    known = next(iter(splits.values())).info
    return Source(SourceInfo(slug(wanted), wanted, known.license or None, known.homepage or None), splits)


def _similar(folder: Path) -> str:
    """The folder that a mistyped one may have been, as a part of a sentence."""
    beside = folders_in(folder.parent) if folder.parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, [found.name for found in beside], n=1)
    return f"; did you mean {folder.parent / close[0]}?" if close else ""


def _brief(error: Exception) -> str:
    """Class and first line of an inner error."""
    return f"{type(error).__name__}: {first_line(error)[:300]}" if str(error).strip() else type(error).__name__
