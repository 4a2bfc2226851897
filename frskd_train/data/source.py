"""Find the dataset given as `--dataset` and return its splits, without reading images."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from frskd_timm.errors import UserError, first_line
from frskd_train.data.folder import folders_in, is_image_folder, is_voc_folder, read_image_folder, read_voc
from frskd_train.data.images import printable
from frskd_train.data.scenes import SAMPLE_FOLDER, compose_splits
from frskd_train.settings import DataSettings
from frskd_train.suggest import suggest

SAMPLE_NAME, SCENES_NAME = "fashion_mnist_sample", "fashion_mnist_scenes"
SAMPLE_ID = "zalando-datasets/fashion_mnist"
SAMPLE_LICENSE, SAMPLE_HOMEPAGE = "mit", "https://github.com/zalandoresearch/fashion-mnist"
READ_WHOLE = 2**30  # size in bytes up to which parquet files are read into memory, without datasets' cache
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
SPLIT_IN_FILE_NAME = re.compile(r"(?:^|[^a-z])(train|training|validation|valid|val|dev|test|testing)(?:[^a-z]|$)")
Files = dict[str, list[Path]]  # by split


@dataclass(frozen=True)
class Source:
    """A dataset and what is known about it.

    Attributes:
        name: Name for folders and tags, of letters, digits, `_`, `-` and `.` only.
        id: Its id on the Hub, or the name of its folder.
        splits: Splits by name.
        license: Identifier such as `mit`, if known.
        homepage: URL, if known.
        class_names: Class names if the rows do not contain them.
        notes: Sentences that the user should see.
    """

    name: str
    id: str
    splits: Mapping[str, datasets.Dataset]
    license: str | None = None
    homepage: str | None = None
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()


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
        splits, names = compose_splits(settings.train_num_samples)
        return replace(read_sample(), name=SCENES_NAME, splits=splits, class_names=names)
    folder = Path(wanted).expanduser()
    if folder.is_file():
        raise UserError(f"--dataset {wanted} is a file; give the folder that holds it.")
    if folder.is_dir():
        return _from_folder(folder, settings)
    if not HUB_ID.fullmatch(wanted) or wanted.startswith("."):
        raise UserError(f"--dataset {wanted} is neither a folder nor the id of a dataset on the Hub{_similar(folder)}")
    return _load_from_hub(settings)


def read_sample() -> Source:
    """Return the included sample of Fashion-MNIST."""
    return Source(SAMPLE_NAME, SAMPLE_ID, _read_files(SAMPLE_FOLDER), SAMPLE_LICENSE, SAMPLE_HOMEPAGE)


def _from_folder(folder: Path, settings: DataSettings) -> Source:
    for setting, value in (("config", settings.dataset_config), ("revision", settings.dataset_revision)):
        if value is not None:
            raise UserError(f"--dataset-{setting} is for datasets on the Hub, but {folder} is a local folder.")
    class_names: list[str] | None = None
    notes: list[str] = []
    datasets.disable_progress_bars()  # shown while reading local files
    if is_voc_folder(folder):
        splits, class_names = read_voc(folder)
    elif is_image_folder(folder) and not (_is_saved(folder) or _has_metadata(folder)):
        splits, notes = read_image_folder(folder)
    else:
        splits = _read_files(folder)
    return _described(printable(folder.resolve().name), splits, class_names, tuple(notes))


def _load_from_hub(settings: DataSettings) -> Source:
    wanted = settings.dataset
    try:
        loaded = datasets.load_dataset(wanted, name=settings.dataset_config, revision=settings.dataset_revision)
    except Exception as error:  # not found, offline, gated, needs a configuration, holds a script: the error says which
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise UserError(
            f"--dataset {wanted} is not a folder here, and no dataset with this id could be loaded from the "
            f"Hub{offline} ({_brief(error)}){_similar(Path(wanted))}"
        ) from error
    return _described(wanted, dict(loaded))


def _described(
    identifier: str,
    splits: Mapping[str, datasets.Dataset],
    class_names: list[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Return a source with licence and homepage from the splits, if they have them."""
    name = re.sub(r"[^\w.-]+", "-", identifier, flags=re.ASCII).strip("-._").lower() or "dataset"
    known = next(iter(splits.values())).info
    return Source(name, identifier, splits, known.license or None, known.homepage or None, class_names, notes)


def _similar(folder: Path) -> str:
    """Suggest a folder with a similar name, as the end of a sentence."""
    beside = folders_in(folder.parent) if folder.parent.is_dir() else []
    return suggest(folder.name, [found.name for found in beside], within=folder.parent)


def _is_saved(folder: Path) -> bool:
    """Return whether a folder was written by datasets' `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _has_metadata(folder: Path) -> bool:
    """Return whether a folder of images describes them in a metadata file."""
    endings = (".csv", ".jsonl", ".parquet")
    return any((sub / f"metadata{ending}").exists() for sub in (folder, *folders_in(folder)) for ending in endings)


def _read_files(folder: Path) -> dict[str, datasets.Dataset]:
    """Read a folder of tables: saved by datasets, images with a metadata file, parquet or arrow files."""
    if _is_saved(folder):
        with _refusal(f"--dataset {folder} was saved by datasets but does not load"):
            loaded = datasets.load_from_disk(str(folder))
        return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    if _has_metadata(folder):
        with _refusal(f"{folder} could not be read as images with a metadata file"):
            return dict(datasets.load_dataset("imagefolder", data_dir=str(folder)))
    for ending, read in ((".parquet", _read_parquet), (".arrow", _read_arrow)):
        files = sorted(file for file in folder.rglob(f"*{ending}") if not file.name.startswith("."))
        if files:
            with _refusal(f"The {ending[1:]} files in {folder} could not be read"):
                return read(_by_split(folder, files))
    raise UserError(
        f"--dataset {folder} holds neither class folders of images, nor parquet or arrow files, nor a dataset saved by "
        "datasets' save_to_disk."
    )


@contextmanager
def _refusal(sentence: str) -> Iterator[None]:
    """Convert errors of datasets and pyarrow in the user's files into a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{sentence} ({_brief(error)}).") from error


def _read_parquet(by_split: Files) -> dict[str, datasets.Dataset]:
    if sum(file.stat().st_size for files in by_split.values() for file in files) > READ_WHOLE:
        names = {split: [str(file) for file in files] for split, files in by_split.items()}
        return dict(datasets.load_dataset("parquet", data_files=names))
    tables = {split: pa.concat_tables([pq.read_table(file) for file in files]) for split, files in by_split.items()}
    return {split: datasets.Dataset(InMemoryTable(table)) for split, table in tables.items()}


def _read_arrow(by_split: Files) -> dict[str, datasets.Dataset]:
    read = {split: [datasets.Dataset.from_file(str(file)) for file in files] for split, files in by_split.items()}
    return {split: datasets.concatenate_datasets(parts) for split, parts in read.items()}


def _by_split(folder: Path, files: list[Path]) -> Files:
    """Group files by the split in their path; files without one are training files."""
    by_split: Files = {}
    for file in files:
        named = SPLIT_IN_FILE_NAME.search(file.relative_to(folder).with_suffix("").as_posix().lower())
        by_split.setdefault(named[1] if named else "train", []).append(file)
    return by_split


def _brief(error: Exception) -> str:
    """Return the class and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)[:300]}" if str(error).strip() else type(error).__name__
