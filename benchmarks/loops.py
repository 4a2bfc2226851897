"""Compare the speed of `train.py` with that of timm's training script, with cross-entropy on the same images.

    python benchmarks/loops.py ../pytorch-image-models/train.py

Both train ResNet-18 on 12,000 JPEGs of 256x256 pixels, at 224 pixels in bfloat16. `OUTPUT/loops.csv` gets the images
per second of the second epoch. timm's package does not contain its script, which is in its repository.
"""

import argparse
import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from commits import commit
from loading import ROOT, write_images

from frskd_train.system.device import machine_name
from tools.table_files import append

RATE = re.compile(r"\(\s*[\d.]+s,\s*([\d.]+)/s\)")  # in a line of timm's log


def main() -> None:
    """Train with both."""
    args = parse()
    data, ours, theirs = (args.output / name for name in ("data", "ours", "timm"))
    for left in (data, ours, theirs):  # by an attempt that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    classes = 3
    write_images(data, {"train": 8, "test": 2} if args.rehearse else {"train": 4000, "test": 10}, classes, (256, 256))
    model, size, batch = ("test_resnet", 64, 8) if args.rehearse else ("resnet18", 224, 128)
    shared = ["--model", model, "--batch-size", batch, "--epochs", 2, "--opt", "sgd", "--lr", "0.05"]
    shared += ["--img-size", size, "--workers", args.workers]
    our_flags = ["--method", "ce", "--dataset", data, "--data-mode", "stream", "--output-dir", ours]
    our_flags += ["--interpolation", "bilinear", "--amp-dtype", "bfloat16"]
    timm_flags = ["--data-dir", data, "--train-split", "train", "--val-split", "test", "--num-classes", classes]
    timm_flags += ["--amp", "--amp-dtype", "bfloat16", "--channels-last", "--pin-mem", "--device", args.device]
    timm_flags += ["--output", theirs]
    timm_flags += ["--log-interval", 1, "--warmup-epochs", 0, "--color-jitter", 0, "--train-interpolation", "bilinear"]
    run([sys.executable, ROOT / "train.py", *shared, *our_flags])
    log = run([sys.executable, args.timm_train, *shared, *timm_flags])
    with (ours / "summary.csv").open(encoding="utf-8") as file:
        our_rate = float(list(csv.DictReader(file))[-1]["images_per_second"])
    rates = RATE.findall(log)
    if not rates:
        sys.exit(f"error: the output of {args.timm_train} has no images per second:\n{log[-2000:]}")
    row = {"model": model, "img_size": size, "batch_size": batch, "ours": our_rate, "timm": float(rates[-1])}
    row |= {"machine": machine_name(torch.device(args.device)), "commit": commit()}
    print(row)
    append(args.output / "loops.csv", [row])
    shutil.rmtree(data)


def run(command: Sequence[object]) -> str:
    """Run a command and return its output."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"error: {command[1]} failed.")
    return done.stdout


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("timm_train", type=Path, help="train.py of timm's repository")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "loops", help="folder of images, runs and results"
    )
    parser.add_argument("--device", default="cuda", help="device of timm's script; train.py chooses its own")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, for a test")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
