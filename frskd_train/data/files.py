"""Tabular files: the included sample, datasets saved by `datasets`, images with a metadata file, parquet, arrow."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from frskd_timm.errors import UserError, first_line
from frskd_train.data.folder import folders_in

SAMPLE_NAME = "fashion_mnist_sample"
SAMPLE_FOLDER = Path(__file__).parent / SAMPLE_NAME
SAMPLE_ID = "zalando-datasets/fashion_mnist"
SAMPLE_LICENSE, SAMPLE_HOMEPAGE = "mit", "https://github.com/zalandoresearch/fashion-mnist"
READ_WHOLE = 2**30  # size in bytes up to which parquet files are read into memory, without datasets' cache
Files = dict[str, list[Path]]  # by split
SPLIT_IN_FILE_NAME = re.compile(r"(?:^|[^a-z])(train|training|validation|valid|val|dev|test|testing)(?:[^a-z]|$)")


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

    @classmethod
    def of(cls, identifier: str, splits: Mapping[str, datasets.Dataset], **others: Any) -> "Source":
        """Create it with licence and homepage from the splits, if they have them."""
        known = next(iter(splits.values())).info
        return cls(slug(identifier), identifier, splits, known.license or None, known.homepage or None, **others)


def read_sample() -> Source:
    """Return the included sample of Fashion-MNIST."""
    return Source(SAMPLE_NAME, SAMPLE_ID, read_files(SAMPLE_FOLDER), SAMPLE_LICENSE, SAMPLE_HOMEPAGE)


def slug(name: str) -> str:
    """Return the name with only characters allowed in folders and tags."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-._").lower() or "dataset"


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by datasets' `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def has_metadata(folder: Path) -> bool:
    """Return whether a folder of images describes them in a metadata file."""
    endings = (".csv", ".jsonl", ".parquet")
    return any((sub / f"metadata{ending}").exists() for sub in (folder, *folders_in(folder)) for ending in endings)


def read_files(folder: Path) -> dict[str, datasets.Dataset]:
    """Read a folder of tables: saved by datasets, images with a metadata file, parquet or arrow files."""
    if is_saved(folder):
        with _refusal(f"--dataset {folder} was saved by datasets but does not load"):
            loaded = datasets.load_from_disk(str(folder))
        return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    if has_metadata(folder):
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
        raise UserError(f"{sentence} ({brief(error)}).") from error


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


def brief(error: Exception) -> str:
    """Return the class and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)[:300]}" if str(error).strip() else type(error).__name__
