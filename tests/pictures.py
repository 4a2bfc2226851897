"""Small synthetic datasets for the tests."""

import io
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from frskd_train.data import TrainingData, load_data
from frskd_train.settings import DataSettings, PreprocessingSettings
from tools import typefaces

MODEL_CFG = {"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
PREPROCESSING = set(PreprocessingSettings.__dataclass_fields__)


def load(dataset: object, **chosen: Any) -> TrainingData:
    """Call `load_data` with settings of both groups by name."""
    pre = {name: chosen.pop(name) for name in set(chosen) & PREPROCESSING}
    others = {name: chosen.pop(name) for name in set(chosen) & {"num_outputs", "task", "resize_range"}}
    data, preprocessing = DataSettings(dataset=str(dataset), **chosen), PreprocessingSettings(**pre)
    return load_data(data, preprocessing, model_cfg=MODEL_CFG, **others)


def load_masks(dataset: object, **chosen: Any) -> TrainingData:
    """Call `load` for segmentation."""
    return load(dataset, task="segmentation", **{"mean": (0.5,), "std": (0.2,)} | chosen)


def picture(number: int, width: int = 12, height: int = 12, mode: str = "RGB") -> Image.Image:
    """Draw a smooth coloured image, a different one for each number."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(3 * x * (1 + number % 5) + 2 * y * channel + number) for channel in range(3)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def split(rows: list[dict[str, Any]], labels: list[Any], feature: Any = None) -> datasets.Dataset:
    feature = feature or datasets.ClassLabel(names=["cat", "dog", "eel"])
    return datasets.Dataset.from_dict(
        {"image": rows, "label": labels}, features=datasets.Features(image=datasets.Image(), label=feature)
    )


def pictures(count: int, mode: str = "RGB", **size: int) -> datasets.Dataset:
    return split([encoded(picture(k, mode=mode, **size)) for k in range(count)], [k % 3 for k in range(count)])


def class_folders(root: Path, *classes: str, count: int = 3) -> Path:
    """Draw `count` images in a folder for each class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            picture(number + k * len(classes)).save(root / name / f"{k}.png")
    return root


def labels_of(number: int, width: int, height: int, classes: int = 3) -> np.ndarray:
    """Draw a mask of diagonal stripes; the first row is unlabelled."""
    rows = np.arange(height)[:, None] + np.arange(width) + number
    labels = ((rows // 5) % classes).astype(np.uint8)
    labels[0] = 255
    return labels


def masked(count: int, **names: str) -> datasets.Dataset:
    """Return images of 40x30 pixels with masks of three classes."""
    image, mask = names.get("image", "image"), names.get("mask", "mask")
    rows = {
        image: [encoded(picture(number, 40, 30)) for number in range(count)],
        mask: [encoded(Image.fromarray(labels_of(number, 40, 30))) for number in range(count)],
    }
    features = datasets.Features({image: datasets.Image(), mask: datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


def voc_folder(folder: Path, labels: Callable[[int, int, int], np.ndarray] = labels_of) -> Path:
    """Write a folder in VOC's layout with images of two sizes: six for training, four for validation."""
    lists = folder / "ImageSets" / "Segmentation"
    for below in (folder / "JPEGImages", folder / "SegmentationClass", lists):
        below.mkdir(parents=True)
    for number in range(10):
        width, height = (40, 30) if number % 3 else (36, 44)
        picture(number, width, height).save(folder / "JPEGImages" / f"p_{number}.jpg", quality=95)
        mask = Image.fromarray(labels(number, width, height))
        mask.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 7)])
        mask.save(folder / "SegmentationClass" / f"p_{number}.png")
    for split, numbers in (("train", range(6)), ("val", range(6, 10))):
        (lists / f"{split}.txt").write_text("".join(f"p_{number}\n" for number in numbers))
    return folder


def save(folder: Path, **splits: datasets.Dataset) -> Path:
    """Write one Parquet file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dataset in splits.items():
        pq.write_table(dataset.data.table, folder / f"{name}.parquet")
    return folder


def damaged(kind: str) -> dict[str, Any]:
    whole = encoded(Image.effect_noise((64, 64), 90))["bytes"]
    huge = bytearray(encoded(Image.new("L", (8, 8)))["bytes"])
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # a header of 3.6 gigapixels
    return {
        "truncated": {"bytes": whole[: len(whole) // 2], "path": "train/dog/7.png"},
        "no image": {"bytes": b"GIF89a, not really", "path": None},
        "missing": {"bytes": None, "path": "/no/such/7.png"},
        "bomb": {"bytes": bytes(huge), "path": None},
        "program": {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "path": None},
        "thread": encoded(Image.new("L", (1, 5000))),
        "float": encoded(Image.new("F", (12, 12), 0.5), "TIFF"),
        "empty": {"bytes": b"", "path": None},
    }[kind]


def typefaces_are_installed(packages: Sequence[str] = typefaces.PACKAGES) -> bool:
    """Return whether Debian packages are there, by default those of `tools.typefaces`."""
    command = f"dpkg-query -W {' '.join(packages)}"
    return subprocess.run(["sh", "-c", command], capture_output=True).returncode == 0
