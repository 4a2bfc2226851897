"""Compare the speed of the input pipeline with that of timm's own loader, as a ratio in one run.

    python benchmarks/loading.py                      # 500x375 JPEGs to 224x224, one worker
    python benchmarks/loading.py --images 2000 --workers 8 --batch-size 128

Both read the same image folder and make the same random resized crops, flips and normalised float32 batches. They take
turns in every round; the ratio is the median over the rounds, with the minimum and the maximum.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image
from timm.data import create_dataset, create_loader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from frskd_train.data import load_data  # noqa: E402
from frskd_train.settings import DataSettings, PreprocessingSettings  # noqa: E402


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs of 500x375 pixels in two classes: noise at several scales, about as large as photographs' files."""
    rng = np.random.default_rng(0)
    for number in range(count):
        layers = [Image.fromarray(rng.integers(0, 256, (size * 3 // 4, size, 3), np.uint8)) for size in (8, 40, 200)]
        picture = np.mean([np.asarray(layer.resize((500, 375), Image.Resampling.BICUBIC)) for layer in layers], 0)
        path = folder / ("train" if number % 10 else "val") / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path, quality=90)


def rate(batches: Callable[[], Iterable[Any]]) -> float:
    """Return images per second after the first batch, which starts the workers."""
    iterator, count = iter(batches()), 0
    next(iterator)
    start = time.perf_counter()
    for images, _ in iterator:
        count += len(images)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (
        ("--images", 800),
        ("--workers", 1),
        ("--batch-size", 32),
        ("--img-size", 224),
        ("--rounds", 5),
    ):
        parser.add_argument(flag, type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place), args.images)
        data = load_data(
            DataSettings(dataset=place, data_mode="stream", workers=args.workers),
            PreprocessingSettings(img_size=args.img_size, train_crop_mode="rrc"),
            model_cfg=timm.get_pretrained_cfg("resnet18").to_dict(),
        )
        ours = data.train_batches(args.batch_size, seed=0)
        theirs = create_loader(
            create_dataset("", root=place, split="train"), (3, args.img_size, args.img_size), args.batch_size,
            is_training=True, use_prefetcher=False, interpolation="bilinear", num_workers=args.workers,
        )  # fmt: skip
        rows = [(rate(lambda epoch=epoch: ours.epoch(epoch)), rate(lambda: theirs)) for epoch in range(args.rounds)]
    ratios = [own / other for own, other in rows]
    own, other = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"this package {own:.0f} images/s, timm {other:.0f} images/s, {args.workers} workers, {args.img_size} pixels")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")


if __name__ == "__main__":
    main()
