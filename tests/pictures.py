"""Small datasets of made-up pictures for the tests of data."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from frskd_train.data import TrainingData, load_data
from frskd_train.settings import DataSettings, PreprocessingSettings

MODEL_CFG = {"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
PREPROCESSING = set(PreprocessingSettings.__dataclass_fields__)


def load(dataset: object, **chosen: Any) -> TrainingData:
    """load_data with settings of both groups by name."""
    pre = {name: chosen.pop(name) for name in set(chosen) & PREPROCESSING}
    others = {name: chosen.pop(name) for name in set(chosen) & {"num_outputs", "task", "resize_range"}}
    data, preprocessing = DataSettings(dataset=str(dataset), **chosen), PreprocessingSettings(**pre)
    return load_data(data, preprocessing, model_cfg=MODEL_CFG, **others)


def load_masks(dataset: object, **chosen: Any) -> TrainingData:
    """The same for segmentation."""
    return load(dataset, task="segmentation", **{"mean": (0.5,), "std": (0.2,)} | chosen)


def picture(number: int, width: int = 12, height: int = 12, mode: str = "RGB") -> Image.Image:
    """A smooth coloured picture, another one for each number."""
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


def labels_of(number: int, width: int, height: int, classes: int = 3) -> np.ndarray:
    """A mask of slanted stripes; the first row has no class."""
    rows = np.arange(height)[:, None] + np.arange(width) + number
    labels = ((rows // 5) % classes).astype(np.uint8)
    labels[0] = 255
    return labels


def masked(count: int, **names: str) -> datasets.Dataset:
    """Pictures of 40x30 pixels with masks of three classes."""
    image, mask = names.get("image", "image"), names.get("mask", "mask")
    rows = {
        image: [encoded(picture(number, 40, 30)) for number in range(count)],
        mask: [encoded(Image.fromarray(labels_of(number, 40, 30))) for number in range(count)],
    }
    features = datasets.Features({image: datasets.Image(), mask: datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


def save(folder: Path, **splits: datasets.Dataset) -> Path:
    """Parquet files, one a split."""
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
