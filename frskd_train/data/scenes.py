"""Scenes for segmentation with exact masks, composed on the fly from the garments of the Fashion-MNIST sample."""

from collections import UserDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from frskd_timm.pixels import to_8_bits
from frskd_train.data.columns import Splits
from frskd_train.data.images import Images
from frskd_train.data.mask_folder import pairs
from frskd_train.data.sampler import ROW_SEED, Rows
from frskd_train.data.tables import read_tables

SAMPLE_FOLDER = Path(__file__).parent / "fashion_mnist_sample"
BACKGROUND = "background"
COUNTS = {"train": 1200, "test": 300}
SIZE = 64  # height and width of a scene in pixels
GARMENTS = (2, 5)  # fewest and most in a scene
EXTENT = (0.4, 0.85)  # side of a garment relative to that of the scene
VISIBLE = 0.75  # smallest fraction of a garment's side inside the scene
TILT = 30  # degrees in both directions
DARK = 24  # gray value up to which a pixel connected to the border is background

Bytes = npt.NDArray[np.uint8]
Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scenes:
    """Images [N, 3, H, W] and their masks [N, H, W] with the class of each pixel, 0 for the background."""

    images: Bytes
    masks: Bytes


def compose_splits(train_num_samples: int | None) -> tuple[Splits, list[str]]:
    """Return splits of scenes with the columns `image` and `mask`, composed on first access, and the class names."""
    splits = _ComposedSplits(COUNTS | {"train": train_num_samples or COUNTS["train"]})
    return splits, [BACKGROUND, *read_tables(SAMPLE_FOLDER)["train"].features["label"].names]


class _ComposedSplits(UserDict[str, Any]):
    """Numbers of scenes by split, which become datasets on access."""

    def __getitem__(self, split: str) -> datasets.Dataset:
        if isinstance(self.data[split], int):
            scenes = compose(split, self.data[split])
            images = [_uncompressed(image.transpose(1, 2, 0)) for image in scenes.images]
            self.data[split] = pairs(images, [_uncompressed(mask) for mask in scenes.masks])
        return self.data[split]


def _uncompressed(pixels: Bytes) -> dict[str, Any]:
    """Encode an image [H, W, 3] or [H, W] in a simple format (PPM, PGM)."""
    header = f"P{6 if pixels.ndim == 3 else 5} {pixels.shape[1]} {pixels.shape[0]} 255\n"
    return {"bytes": header.encode() + pixels.tobytes(), "path": None}


@lru_cache(maxsize=2)
def garments(split: str) -> tuple[Bytes, Booleans, Rows, list[str]]:
    """Return gray images [M, 28, 28], which of their pixels are cloth, their classes [M], and the classes' names."""
    dataset = read_tables(SAMPLE_FOLDER)[split]
    rows = list(range(len(dataset)))
    decoded = Images(dataset, split, "image").load_many(rows, lambda image: to_8_bits(image, "L"))
    images = np.stack([np.asarray(image) for image in decoded])
    return images, _cloth_of(images), np.array(dataset["label"], np.int64), dataset.features["label"].names


def _cloth_of(images: Bytes) -> Booleans:
    """Return masks of cloth in gray images [M, H, W]; dark pixels connected to the border are background."""
    dark = np.pad(images <= DARK, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    outside = np.zeros_like(dark)
    outside[:, 0, :] = True
    count = 0
    while count != (count := int(outside.sum())):
        for step, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
            outside |= np.roll(outside, step, axis) & dark
    return ~outside[:, 1:-1, 1:-1]


def compose(split: str, count: int) -> Scenes:
    """Compose scenes from the garments of a split (train or test, which share none).

    Class 0 is the background. The first scenes do not depend on `count`.
    """
    images, cloth, labels, names = garments(split)
    scenes = Scenes(np.empty((count, 3, SIZE, SIZE), np.uint8), np.zeros((count, SIZE, SIZE), np.uint8))
    by_class = [np.flatnonzero(labels == target) for target in range(len(names))]
    for number in range(count):
        rng = np.random.default_rng([ROW_SEED, list(COUNTS).index(split), number])
        picture, mask = _background(rng), scenes.masks[number]
        for _ in range(rng.integers(GARMENTS[0], GARMENTS[1] + 1)):
            target = int(rng.integers(len(names)))
            row = rng.choice(by_class[target])
            _lay(rng, picture, mask, images[row], cloth[row], target + 1)
        noisy = picture + rng.normal(0, 6, picture.shape)
        scenes.images[number] = noisy.round().clip(0, 255).transpose(2, 0, 1)
    return scenes


def _background(rng: np.random.Generator) -> Floats:
    """Mix two colours with noise of several scales and, half of the time, with stripes: [SIZE, SIZE, 3] in 0..255."""
    mixture = np.zeros((SIZE, SIZE))
    for cells, weight in ((3, 1.0), (8, 0.6), (24, 0.4)):
        noise = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        mixture += weight * np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    mixture /= 2
    if rng.random() < 0.5:
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 25)
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        mixture = 0.5 * mixture + 0.25 * (1 + np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period))
    first, second = rng.uniform(20, 235, (2, 3))
    return first + mixture[..., None].clip(0, 1) * (second - first)


def _lay(rng: np.random.Generator, picture: Floats, mask: Bytes, garment: Bytes, cloth: Booleans, target: int) -> None:
    """Draw a garment of random size, tilt, colour and place on an image [S, S, 3] and its mask [S, S], in place."""
    scene = len(mask)
    side = round(scene * rng.uniform(*EXTENT))
    tilt, mirrored = rng.uniform(-TILT, TILT), rng.random() < 0.5
    dyed, shade = rng.uniform(60, 255, 3), rng.uniform(0, 40, 3)
    layers = (garment, Image.Resampling.BICUBIC), (cloth.astype(np.uint8) * 255, Image.Resampling.BILINEAR)
    gray, shape = (
        Image.fromarray(layer).resize((side, side), kind).rotate(tilt, Image.Resampling.BILINEAR)
        for layer, kind in layers
    )
    light, covers = np.asarray(gray)[..., None] / 255, np.asarray(shape) >= 128
    if mirrored:
        light, covers = light[:, ::-1], covers[:, ::-1]
    hidden = round(side * (1 - VISIBLE))
    top, left = rng.integers(-hidden, scene - side + hidden + 1, 2)
    inner = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    cut = slice(max(-top, 0), scene - top), slice(max(-left, 0), scene - left)
    light, covers = light[cut], covers[cut]
    picture[inner] = np.where(covers[..., None], shade + light * (dyed - shade), picture[inner])
    mask[inner] = np.where(covers, target, mask[inner])
