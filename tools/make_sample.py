"""Create the Fashion-MNIST sample in the package from the four original IDX files.

    python -m tools.make_sample --idx-dir /usr/share/datasets/fashion-mnist
    python -m tools.make_sample --idx-dir DIR --full ~/data/fashion_mnist

The second command writes all 60,000 / 10,000 images with `save_to_disk` of `datasets`, for use with `--dataset`. The
same files and versions of Pillow and pyarrow produce the same bytes; other versions produce the same pixels.
"""

import argparse
import gzip
import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from frskd_timm.errors import UserError
from frskd_train.data.source import SAMPLE_FOLDER, SAMPLE_HOMEPAGE, SAMPLE_LICENSE
from tools.whole import whole

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = {"train": "train", "test": "t10k"}
KINDS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
PER_CLASS = {"train": 400, "test": 100}


def choose_rows(labels: npt.NDArray[np.uint8], per_class: int, salt: str) -> list[int]:
    """Choose the same number of rows of each class by a hash, independent of library versions.

    Args:
        labels: Class number of each row.
        per_class: Number of rows of each class.
        salt: Makes the choice different for each split.

    Returns:
        Row numbers in ascending order.
    """
    chosen: list[int] = []
    for target in np.unique(labels):
        rows = np.flatnonzero(labels == target).tolist()
        rows.sort(key=lambda row: hashlib.sha256(f"{salt} {row}".encode()).digest())
        chosen += rows[:per_class]
    return sorted(chosen)


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode a grayscale image [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes."""
    content = gzip.decompress(path.read_bytes())
    header = 4 + 4 * content[3]  # the fourth byte is the number of dimensions
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def to_dataset(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> datasets.Dataset:
    """Create a dataset with the columns `image` and `label` from images [N, H, W] and labels [N]."""
    info = datasets.DatasetInfo(
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))),
        license=SAMPLE_LICENSE,
        homepage=SAMPLE_HOMEPAGE,
    )
    rows = {"image": [{"bytes": encode_png(image), "path": None} for image in images], "label": labels.astype(np.int64)}
    return datasets.Dataset.from_dict(rows, info=info)


def read_splits(folder: Path, per_class: Mapping[str, int] | None = None) -> datasets.DatasetDict:
    """Read the four IDX files of a folder: all images, or a number per class of each split.

    Raises:
        UserError: A file is missing or damaged.
    """
    splits = datasets.DatasetDict()
    for split, prefix in FILES.items():
        try:
            images, labels = (read_idx(folder / f"{prefix}-{kind}") for kind in KINDS)
        except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error) as error:
            raise UserError(f"The files of --idx-dir could not be read: {error}.") from error
        if per_class is not None:
            rows = choose_rows(labels, per_class[split], f"frskd fashion-mnist {split}")
            images, labels = images[rows], labels[rows]
        splits[split] = to_dataset(images, labels)
    return splits


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sample, or the whole dataset with `--full`."""
    parser = argparse.ArgumentParser(description="Create the Fashion-MNIST sample from the original IDX files.")
    parser.add_argument("--idx-dir", type=Path, required=True, help="folder with the four IDX .gz files")
    parser.add_argument(
        "--output", type=Path, default=SAMPLE_FOLDER, help="folder of the sample (default: the package)"
    )
    parser.add_argument("--full", type=Path, help="write all images to this folder with save_to_disk instead")
    options = parser.parse_args(arguments)
    if options.full is not None:
        with whole(options.full) as place:
            splits = read_splits(options.idx_dir)
            splits.save_to_disk(place)
        print(f"{options.full}: {len(splits['train']):,} training and {len(splits['test']):,} test images")
        return
    splits = read_splits(options.idx_dir, PER_CLASS)
    options.output.mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        file = options.output / f"{split}.parquet"
        pq.write_table(dataset.data.table, file, compression="none", use_dictionary=False)
        print(f"{file}: {len(dataset):,} images, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
