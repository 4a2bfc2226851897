"""Train variants of a recipe over seeds and budgets, and collect their scores in a CSV file.

    python benchmarks/budgets.py --dataset DIR --variants ce ramp --seeds 1 2 --epochs 10 --output budgets.csv
    python benchmarks/budgets.py --variants ce ramp --output scenes.csv -- --task segmentation
    python benchmarks/budgets.py --table budgets.csv

Runs whose results are in the CSV file are not repeated, so an interrupted collection can be continued. Each run uses
one thread. `seconds` in the CSV file depends on the load of the machine; use `benchmarks/speed.py` to compare speeds.
"""

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
COLUMNS = ["variant", "epochs", "seed", "score", "self_teacher_score", "seconds", "flags"]

SCORES = {"classification": ("top1", "top-1"), "segmentation": ("miou", "mIoU")}

# Each variant changes one setting of FRSKD with the ramp.
VARIANTS: dict[str, list[str]] = {
    "ce": ["--method", "ce"],
    "ce-smoothing": ["--method", "ce", "--smoothing", "0.1"],
    "ce-ema": ["--method", "ce", "--model-ema"],
    "ce-batch128": ["--method", "ce", "--batch-size", "128"],
    "constant": ["--distill-schedule", "constant"],
    "ramp": ["--distill-schedule", "ramp"],
    "ramp-smoothing": ["--distill-schedule", "ramp", "--smoothing", "0.1"],
    "ramp-smoothing-narrow": [
        *["--distill-schedule", "ramp", "--smoothing", "0.1"],
        *["--teacher-width", "1", "--teacher-depth", "1"],  # half the channels, half the blocks
    ],
    "ramp-smoothing-beta0": ["--distill-schedule", "ramp", "--smoothing", "0.1", "--beta", "0"],
    "ramp-smoothing-alpha4-beta0": [
        *["--distill-schedule", "ramp", "--smoothing", "0.1"],
        *["--alpha", "4", "--beta", "0"],
    ],
    "ramp-smoothing-teacher-lr3": ["--distill-schedule", "ramp", "--smoothing", "0.1", "--teacher-lr-scale", "3"],
    **{
        f"ramp-smoothing-{loss}-beta{beta}": [
            *["--distill-schedule", "ramp", "--smoothing", "0.1"],
            *["--feature-loss", loss, "--beta", beta],
        ]
        for loss, beta in (("fitnet", "1"), ("fitnet", "100"), ("overhaul", "1e-3"), ("overhaul", "1e-4"))
    },
    "ramp-ema": ["--distill-schedule", "ramp", "--model-ema"],
    "ramp-T2": ["--distill-schedule", "ramp", "--temperature", "2"],
    "ramp-T1": ["--distill-schedule", "ramp", "--temperature", "1"],
    "ramp-alpha1": ["--distill-schedule", "ramp", "--alpha", "1"],
    "ramp-alpha4": ["--distill-schedule", "ramp", "--alpha", "4"],
    "ramp-beta0": ["--distill-schedule", "ramp", "--beta", "0"],
    "ramp-beta1000": ["--distill-schedule", "ramp", "--beta", "1000"],
    "ramp-late": ["--distill-schedule", "ramp", "--distill-start", "13"],  # 2/3 of 20 epochs, as in the paper on VOC
    "ramp-detach": ["--distill-schedule", "ramp", "--teacher-gradient", "0"],
    "ramp-teacher-lr2": ["--distill-schedule", "ramp", "--teacher-lr-scale", "2"],
    "no-distillation": ["--alpha", "0", "--beta", "0"],
}


def run(variant: str, epochs: int, seed: int, flags: list[str]) -> dict[str, object]:
    """Train once and return a row of the CSV file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), "--output-dir", f"{folder}/run", "--epochs", str(epochs)]
        command += ["--seed", str(seed), "--val-interval", str(epochs), "--threads", "1", "--smoothing", "0"]
        command += [*flags, *VARIANTS[variant]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    score = SCORES[metrics["task"]][0]
    return {
        "variant": variant,
        "epochs": epochs,
        "seed": seed,
        "score": metrics["student"][score],
        "self_teacher_score": (metrics["self_teacher"] or {}).get(score),
        "seconds": metrics["seconds"],
        "flags": " ".join(flags),
    }


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of the CSV file."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Format a Markdown table: one line per budget and variant, mean and half the range over the seeds."""
    task = "segmentation" if "--task segmentation" in rows[0]["flags"] else "classification"
    name = SCORES[task][1]
    lines = [
        f"| epochs | variant | {name} of the student | seeds | {name} of the self-teacher |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((int(row["epochs"]), row["variant"]), []).append(row)
    order = list(VARIANTS)
    for epochs, variant in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        runs = groups[epochs, variant]
        teacher = spread([float(run["self_teacher_score"]) for run in runs if run["self_teacher_score"]])
        lines.append(
            f"| {epochs} | `{variant}` | {spread([float(r['score']) for r in runs])} | {len(runs)} | {teacher} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Format one value as '86.23', several as mean and half the range: '86.23 ± 0.11'."""
    if not values:
        return ""
    middle = f"{statistics.mean(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ± {(max(values) - min(values)) / 2:.2f}"


def main() -> None:
    """Make the runs that are missing in the CSV file, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, metavar="CSV", help="print the table of these results and exit")
    parser.add_argument("--dataset", help="dataset for train.py; by default its own default")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epochs", nargs="+", type=int, default=[10])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("flags", nargs="*", help="train.py flags of every run, after --")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.table)))
        return
    if not args.output:
        parser.error("--output is required")
    flags = [*(["--dataset", args.dataset] if args.dataset else []), *args.flags]
    done = set()
    if args.output.exists():
        done = {(row["variant"], int(row["epochs"]), int(row["seed"])) for row in read(args.output)}
    else:
        args.output.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    lock = threading.Lock()

    def work(job: tuple[int, int, str]) -> None:
        epochs, seed, variant = job
        try:
            row = run(variant, epochs, seed, flags)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            return
        with lock, args.output.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
        print(row, flush=True)

    jobs = [(e, s, v) for e, s, v in itertools.product(args.epochs, args.seeds, args.variants) if (v, e, s) not in done]
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(work, jobs))


if __name__ == "__main__":
    main()
