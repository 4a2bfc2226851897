"""Arrange the official splits of four datasets as class folders for `--dataset`.

    python -m tools.official_splits cub200 CUB_200_2011 data/cub200

The input is the unpacked archive as distributed by its authors. Images are hard-linked, or copied if that is not
possible. Files that are read:

- `cub200`: `images/`, `images.txt`, `train_test_split.txt`
- `mit67`: `Images/`, `TrainImages.txt`, `TestImages.txt`
- `stanford_dogs`: `Images/`, `train_list.mat`, `test_list.mat` (requires scipy)
- `stanford40`: `JPEGImages/`, `ImageSplits/ACTION_train.txt` and `ACTION_test.txt`
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from frskd_timm.errors import UserError
from tools.whole import whole

Row = tuple[str, str, Path]  # split, class, image


def _cub200(root: Path) -> Iterator[Row]:
    is_train = dict(line.split() for line in _lines(root / "train_test_split.txt"))
    for line in _lines(root / "images.txt"):
        number, name = line.split(maxsplit=1)
        yield "train" if is_train[number] == "1" else "test", name.split("/")[0], root / "images" / name


def _mit67(root: Path) -> Iterator[Row]:
    for split, file in (("train", "TrainImages.txt"), ("test", "TestImages.txt")):
        for name in _lines(root / file):
            yield split, name.split("/")[0], root / "Images" / name


def _stanford_dogs(root: Path) -> Iterator[Row]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("Reading the MATLAB files of Stanford Dogs requires scipy: pip install scipy.") from None
    for split in ("train", "test"):
        for (cell,) in loadmat(str(_existing(root / f"{split}_list.mat")))["file_list"]:
            name = str(cell[0])
            yield split, name.split("/")[0], root / "Images" / name


def _stanford40(root: Path) -> Iterator[Row]:
    for split in ("train", "test"):
        for file in sorted(_existing(root / "ImageSplits").glob(f"*_{split}.txt")):
            for name in _lines(file):
                yield split, file.stem.removesuffix(f"_{split}"), root / "JPEGImages" / name


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "cub200": _cub200,
    "mit67": _mit67,
    "stanford_dogs": _stanford_dogs,
    "stanford40": _stanford40,
}


def arrange(name: str, root: Path, output: Path) -> dict[str, int]:
    """Create `output/train/CLASS/` and `output/test/CLASS/`.

    Args:
        name: A name in `READERS`.
        root: Folder of the unpacked archive.
        output: A new or empty folder.

    Returns:
        The number of images of each split.

    Raises:
        UserError: A list is missing or damaged, an image is missing, two images of a class have the same name, or the
            output folder is not empty.
    """
    try:
        rows = list(READERS[name](root))
    except (ValueError, KeyError) as error:
        raise UserError(f"A list of {name} in {root} is damaged: {error}.") from error
    for _, _, image in rows:
        _existing(image)
    counts = {"train": 0, "test": 0}
    with whole(output) as place:
        for split, class_name, image in rows:
            target = place / split / class_name / image.name
            if target.exists():
                raise UserError(f"Two images of class {class_name} have the name {image.name}.")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(image, target)
            except OSError:  # another disk, or a file system without hard links
                shutil.copyfile(image, target)
            counts[split] += 1
    return counts


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _existing(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} does not exist; the archive has to be unpacked as its authors distribute it.")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Arrange one dataset."""
    parser = argparse.ArgumentParser(description="Arrange the official splits of a dataset as class folders.")
    parser.add_argument("name", choices=READERS)
    parser.add_argument("archive", type=Path, help="folder of the unpacked archive")
    parser.add_argument("output", type=Path, help="new folder for the class folders")
    options = parser.parse_args(arguments)
    counts = arrange(options.name, options.archive, options.output)
    print(f"{options.output}: {counts['train']:,} training and {counts['test']:,} test images")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
