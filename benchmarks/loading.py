"""Compare the speed of the input pipeline with that of timm's own loader, as a ratio in one run.

    python benchmarks/loading.py                      # 500x375 JPEGs to 224x224, one worker
    python benchmarks/loading.py --images 2000 --workers 8 --batch-size 128

Both read the same image folder and make the same random resized crops, flips and normalised float32 batches. They take
turns in every round; the ratio is the median over the rounds, with the minimum and the maximum.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
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


def write_images(folder: Path, counts: Mapping[str, int], classes: int = 2, size: tuple[int, int] = (500, 375)) -> None:
    """Write JPEGs as large as those of photographs to `folder`/SPLIT/CLASS: noise at several scales.

    Args:
        folder: Created if it is missing.
        counts: Number of images per class by split.
        classes: Number of classes.
        size: Width and height in pixels.
    """
    rng = np.random.default_rng(0)
    files = []
    for _ in range(100):  # repeated, to start soon
        noise = [Image.fromarray(rng.integers(0, 256, (n * 3 // 4, n, 3), np.uint8)) for n in (8, 40, 200)]
        picture = np.mean([np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) for layer in noise], 0)
        file = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for split, count in counts.items():
        for number in range(classes):
            place = folder / split / str(number)
            place.mkdir(parents=True)
            for index in range(count):
                (place / f"{index}.jpg").write_bytes(files[index % len(files)])


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
        write_images(Path(place), {"train": args.images * 9 // 20, "val": args.images // 20})
        data = load_data(
            DataSettings(dataset=place, data_mode="stream", workers=args.workers),
            PreprocessingSettings(img_size=(args.img_size,), train_crop_mode="rrc"),
            model_cfg=timm.get_pretrained_cfg("resnet18").to_dict(),
        )
        ours = data.train_batches(args.batch_size, seed=0)
        theirs = create_loader(
            create_dataset("", root=place, split="train"), (3, args.img_size, args.img_size), args.batch_size,
            is_training=True, use_prefetcher=False, interpolation="bilinear", num_workers=args.workers,
            color_jitter=None,
        )  # fmt: skip
        rows = [(rate(lambda epoch=epoch: ours.epoch(epoch)), rate(lambda: theirs)) for epoch in range(args.rounds)]
    ratios = [own / other for own, other in rows]
    own, other = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"this package {own:.0f} images/s, timm {other:.0f} images/s, {args.workers} workers, {args.img_size} pixels")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})")


if __name__ == "__main__":
    main()
