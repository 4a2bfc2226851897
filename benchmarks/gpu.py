"""Check, measure and train on a GPU, in five stages, each in calls of at most ten minutes.

    python benchmarks/gpu.py check          # golden tests, and two steps of every student, eager and compiled
    python benchmarks/gpu.py speed --timm-train ../pytorch-image-models/train.py
    python benchmarks/gpu.py accuracy       # three seeds of four students on all of Fashion-MNIST
    python benchmarks/gpu.py typefaces      # three seeds at 224 pixels
    python benchmarks/gpu.py words          # the students of words in 200 typefaces, for tools/ship.py
    python benchmarks/gpu.py check speed accuracy typefaces words --rehearse    # tiny sizes on the CPU, for a test

A call that runs out of time stops at a checkpoint; the same command continues, and does not repeat what is done. Status
0 means that everything is done, 3 that a further call is needed, 1 that something failed. Results are in the CSV files
of `--output`, with a log for each job. The last three stages need datasets, which `--data` creates without a GPU where
the Debian packages of `budgets.py` and of `python -m tools.typeface_words --packages` are installed. `--timm-train` is
the training script of timm's repository, which its package does not contain; without it the loops are not compared.
"""

import argparse
import csv
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

import protocol  # noqa: E402
from protocol_data import plain_dataset  # noqa: E402
from table_files import append, read  # noqa: E402

STAGES = ("check", "speed", "accuracy", "typefaces", "words")
DATASETS = {"accuracy": "fashion_mnist", "typefaces": "typefaces_224", "words": "typeface_words"}  # by stage
WORD_RECIPES = ("typeface_words_resnet18", "typeface_words_efficientnet_b0")  # here with fewer images, more epochs
SHAPES = [("wide_resnet16_2_frskd", 32), ("resnet18_frskd", 224), ("resnet50_frskd", 224)]
NOT_FINISHED = 3
GRACE = 60  # seconds that a training process gets to save a checkpoint
TIMM_RATE = re.compile(r"\(\s*[\d.]+s,\s*([\d.]+)/s\)")


@dataclass(frozen=True)
class Job:
    """A command of a stage, and whether it continues where it was stopped instead of from the start."""

    stage: str
    name: str
    command: Sequence[object]
    continues: bool = False


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """Yield all jobs of the chosen stages, in their order."""
    make = {"check": check, "speed": speed, "accuracy": accuracy, "typefaces": typefaces, "words": words}
    for stage in args.stages:
        yield from make[stage](args)


def check(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the tests."""
    pytest = [sys.executable, "-m", "pytest", "-n", "0", "--device", args.device]
    files = ["tests/test_method.py", *([] if args.rehearse else ["tests/test_segmentation.py"])]
    yield Job("check", "golden", [*pytest, "-m", "golden", *files, *(["-k", "sla"] if args.rehearse else [])])
    for kind in ("eager",) if args.rehearse else ("eager", "compiled"):  # on a CPU, compiling takes minutes
        chosen = f"{kind} and wide_resnet16" if args.rehearse else kind
        yield Job("check", kind, [*pytest, "-m", "", "tests/test_gpu.py", "-k", chosen])


def speed(args: argparse.Namespace) -> Iterator[Job]:
    """Yield measurements of steps, and of the whole loop beside timm's."""
    shared = [sys.executable, BENCHMARKS / "speed.py", "--no-reference", "--output", args.output / "speed.csv"]
    shared += ["--device", args.device]
    small = ["--rounds", 1, "--steps", 1, "--threads", 1]
    batches = (2,) if args.rehearse else (128, 256)
    for (model, size), batch in (
        (shape, batch) for shape in SHAPES[: 1 if args.rehearse else None] for batch in batches
    ):
        for compiled in (False, True):
            command = [*shared, "--model", model, "--img-size", size, "--batch-size", batch]
            command += [*(["--torchcompile"] if compiled else []), *(small if args.rehearse else [])]
            if args.rehearse and compiled:  # minutes on a CPU
                continue
            yield Job("speed", f"{model}-{size}-{batch}{'-compiled' * compiled}", command)
    if args.timm_train is not None:
        yield Job("speed", "loops", [sys.executable, __file__, "--compare-loops", *rebuilt(args)])


def accuracy(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs on Fashion-MNIST."""
    for case in ("full", *protocol.LARGE_GARMENTS):
        yield training("accuracy", case, args)


def typefaces(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs on typefaces."""
    for case in protocol.LARGE_TYPEFACES:
        yield training("typefaces", case, args)


def words(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs on words in 200 typefaces, whose students are kept."""
    data = plain_dataset("typeface_words", args.output / "data" if args.rehearse else args.data_dir, args.rehearse)
    shared = [sys.executable, ROOT / "train.py", "--dataset", data, "--epochs", 1 if args.rehearse else 30]
    seeds = (1,) if args.rehearse else (1, 2, 3)
    for seed, recipe, method in itertools.product(seeds, WORD_RECIPES, ("frskd", "ce")):
        name = f"{recipe}-{method}-{seed}"
        command = [*shared, "--config", recipe, "--method", method, "--seed", seed, "--resume", "auto"]
        yield Job("words", name, [*command, "--output-dir", args.output / "words" / name], continues=True)


def training(stage: str, case: str, args: argparse.Namespace) -> Job:
    """Return the runs of cross-entropy and FRSKD on a case of the protocol."""
    command = [sys.executable, BENCHMARKS / "budgets.py", "--data", case, "--methods", "ce + smoothing", "frskd"]
    command += ["--output", args.output / "accuracy.csv", "--run-dir", args.output / "runs"]
    command += ["--data-dir", args.output / "data" if args.rehearse else args.data_dir]
    return Job(stage, case, [*command, *(["--rehearse", "--seeds", "1"] if args.rehearse else [])], continues=True)


def compare_loops(args: argparse.Namespace) -> None:
    """Train with cross-entropy on the same images with `train.py` and with timm's script, and write both rates."""
    from loading import write_images

    folder, classes = args.output / "loops" / "data", 3
    shutil.rmtree(folder.parent, ignore_errors=True)  # an attempt that ran out of time
    write_images(folder, {"train": 8, "test": 2} if args.rehearse else {"train": 4000, "test": 10}, classes, (256, 256))
    model, size, batch, workers = ("test_resnet", 64, 8, 1) if args.rehearse else ("resnet18", 224, 128, 12)
    shared = ["--model", model, "--batch-size", batch, "--epochs", 2, "--opt", "sgd", "--lr", "0.05"]
    ours, theirs = args.output / "loops" / "ours", args.output / "loops" / "timm"
    ours_flags = [*shared, "--method", "ce", "--dataset", folder, "--img-size", size, "--output-dir", ours]
    timm_flags = [*shared, "--data-dir", folder, "--train-split", "train", "--val-split", "test", "--workers", workers]
    timm_flags += ["--num-classes", classes, "--img-size", size, "--amp", "--amp-dtype", "bfloat16", "--channels-last"]
    timm_flags += ["--device", args.device, "--output", theirs, "--log-interval", 1, "--warmup-epochs", 0]
    timm_flags += ["--color-jitter", 0]  # as ours, by default
    run([sys.executable, ROOT / "train.py", *ours_flags, "--data-mode", "stream", "--workers", workers])
    log = run([sys.executable, args.timm_train, *timm_flags])
    with (ours / "summary.csv").open(encoding="utf-8") as file:
        our_rate = float(list(csv.DictReader(file))[-1]["images_per_second"])
    rates = TIMM_RATE.findall(log)
    if not rates:
        sys.exit(f"error: the output of {args.timm_train} has no images per second:\n{log[-2000:]}")
    row = {"model": model, "img_size": size, "batch_size": batch, "ours": our_rate, "timm": float(rates[-1])}
    append(args.output / "loops.csv", [row])


def run(command: Sequence[object]) -> str:
    """Run a command and return its output."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"error: {command[1]} failed.")
    return done.stdout


def finished(output: Path) -> set[tuple[str, str]]:
    """Return stage and name of the jobs that are done."""
    return {(row["stage"], row["job"]) for row in read(output / "jobs.csv") if row["status"] == "done"}


def work(args: argparse.Namespace) -> int:
    """Run the jobs that are not done until the time is over; return the exit status."""
    limit = 60 * args.minutes - GRACE
    end = time.monotonic() + limit
    status, done = 0, finished(args.output)
    for job in jobs(args):
        if (job.stage, job.name) in done:
            continue
        left = end - time.monotonic()
        if left <= 0:
            print("The time is over: run the same command again.")
            return NOT_FINISHED
        start = time.monotonic()
        result = execute(job, args.output / "logs" / f"{job.stage}-{job.name}.log", left)
        row = {"stage": job.stage, "job": job.name, "status": result, "seconds": round(time.monotonic() - start, 1)}
        append(args.output / "jobs.csv", [row])
        print(*row.values(), flush=True)
        if result == "stopped" and not job.continues and left > limit - 5:
            print(f"{job.name} alone takes longer than --minutes {args.minutes}.", file=sys.stderr)
            return 1
        if result == "stopped":
            print("The time is over: run the same command again.")
            return NOT_FINISHED
        status = 1 if result == "failed" else status
    return status


def execute(job: Job, log: Path, seconds: float) -> str:
    """Run a job for a limited time; return 'done', 'failed' or 'stopped'."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        options = {
            "stdout": file,
            "stderr": subprocess.STDOUT,
            "cwd": ROOT,
            "env": {**os.environ, "HF_HUB_OFFLINE": "1"},
        }
        process = subprocess.Popen([str(part) for part in job.command], start_new_session=True, **options)  # type: ignore[call-overload]
        try:
            return "failed" if process.wait(seconds) else "done"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # training saves a checkpoint
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return "stopped"


def make_data(args: argparse.Namespace) -> None:
    """Create the datasets that training needs."""
    for name in DATASETS.values():
        print(plain_dataset(name, args.data_dir))


def rebuilt(args: argparse.Namespace) -> list[object]:
    """Return the flags that a job in a process of its own needs."""
    flags = ["--output", args.output, "--device", args.device, "--timm-train", args.timm_train]
    return [*flags, *(["--rehearse"] if args.rehearse else [])]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags without importing torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="folder of results and logs")
    parser.add_argument("--minutes", type=float, default=10, help="time of one call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--timm-train", type=Path, metavar="FILE", help="train.py of timm's repository")
    parser.add_argument("--data", action="store_true", help="create the datasets and exit")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where the datasets are")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--compare-loops", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.output = args.output.resolve()
    if args.rehearse:
        args.device = "cpu"
    if args.timm_train is not None and not args.timm_train.is_file():
        parser.error(f"There is no file {args.timm_train}.")
    if not set(args.stages) <= set(STAGES) or not (args.stages or args.data or args.compare_loops):
        parser.error(f"Name one or more stages: {', '.join(STAGES)}.")
    return args


def main() -> None:
    """Run the chosen stages."""
    args = parse()
    if args.data:
        make_data(args)
        return
    if args.compare_loops:
        compare_loops(args)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.rehearse:
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: there is no GPU here; --rehearse runs everything with tiny sizes on the CPU.")
        for name in (DATASETS[stage] for stage in args.stages if stage in DATASETS):
            if not (args.data_dir / name).exists():
                sys.exit(f"error: there is no dataset {args.data_dir / name}; gpu.py --data creates it.")
    sys.exit(work(args))


if __name__ == "__main__":
    main()
