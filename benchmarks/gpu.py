"""Check, measure and train on a GPU, in six stages, each in calls of less than ten minutes.

    python benchmarks/gpu.py check          # golden tests, and two steps of every student
    python benchmarks/gpu.py speed --timm-train ../pytorch-image-models/train.py
    python benchmarks/gpu.py compile        # two compiled steps of every student
    python benchmarks/gpu.py accuracy       # three seeds of four students on all of Fashion-MNIST
    python benchmarks/gpu.py typefaces      # three seeds at 224 pixels
    python benchmarks/gpu.py words          # the students of words in 200 typefaces, for tools/ship.py
    python benchmarks/gpu.py check speed compile accuracy typefaces words --rehearse   # tiny, on the CPU, for a test

A call that runs out of time stops at a checkpoint; the same command continues, and does not repeat what is done. What
failed is tried again, last. Status 0 means that everything is done, 3 that a further call is needed, 1 that the rest
failed or takes longer than a call. Results are in the CSV files of `--output`, with a log for each job. All stages but
the first need datasets, which `--data` creates without a GPU where the Debian packages of `budgets.py` and of `python
-m tools.typeface_words --packages` are installed. `--timm-train` is the training script of timm's repository, which its
package does not contain; without it the loops are not compared.
"""

import argparse
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS, ROOT = Path(__file__).resolve().parents[:2]
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

import protocol  # noqa: E402
from commits import commit  # noqa: E402
from protocol_data import plain_dataset  # noqa: E402

from tools.table_files import append, read  # noqa: E402

STAGES = ("check", "speed", "compile", "accuracy", "typefaces", "words")
TRAINING = {"accuracy": "fashion_mnist", "typefaces": "typefaces_224", "words": "typeface_words_128_250"}  # by stage
DATASETS = {"speed": "fashion_mnist", **TRAINING}
WORD_RECIPES = ("typeface_words_resnet18", "typeface_words_efficientnet_b0")  # here with fewer images, more epochs
SHAPES = [("wide_resnet16_2_frskd", 32), ("resnet18_frskd", 224), ("resnet50_frskd", 224)]
START = time.monotonic()
NOT_FINISHED = 3
GRACE = 60  # seconds that a training process gets to save a checkpoint
COMPILATION = 150  # seconds without which no compiled training is started
GIVEN_UP = 2  # a job that may never succeed must not use up the time of one that began too late in a call
LATER = {"too late": 1, "failed": GIVEN_UP, "too long": GIVEN_UP}  # than jobs that are new or continue
LOGGED = 40  # lines of a failed job that are printed


@dataclass(frozen=True)
class Job:
    """A command of a stage, and whether it continues where it was stopped instead of from the start."""

    stage: str
    name: str
    command: Sequence[object]
    continues: bool = False


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """Return all jobs of the chosen stages, in their order."""
    make = dict(zip(STAGES, (check, speed, compiled, accuracy, typefaces, words), strict=True))
    return itertools.chain.from_iterable(make[stage](args) for stage in args.stages)


def check(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the tests without compilation."""
    files = ["tests/test_method.py", *([] if args.rehearse else ["tests/test_segmentation.py"])]
    yield Job("check", "golden", test_command(args, "golden", "sla" if args.rehearse else "", *files))
    chosen = "eager and wide" if args.rehearse else "not compiled"
    yield Job("check", "eager", test_command(args, "", chosen, "tests/test_gpu.py"))


def compiled(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the tests with compiled steps, one process per student."""
    import timm

    import frskd_timm  # noqa: F401  registers the students

    models = [SHAPES[0][0]] if args.rehearse else timm.list_models("*_frskd")  # on a CPU, each takes minutes
    for model in models:
        chosen = f"{'eager' if args.rehearse else 'compiled'} and {model}"
        yield Job("compile", model, test_command(args, "", chosen, "tests/test_gpu.py"))


def test_command(args: argparse.Namespace, marked: str, chosen: str, *files: str) -> list[object]:
    """Return the command that runs some tests and logs each one."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-vv", "--durations=0", "-o", "faulthandler_timeout=240"]
    return [*command, "--device", args.device, "-m", marked, "-k", chosen, *files]


def speed(args: argparse.Namespace) -> Iterator[Job]:
    """Yield measurements of steps, and of the whole loop beside timm's."""
    shared = [sys.executable, BENCHMARKS / "speed.py", "--no-reference", "--output", args.output / "speed.csv"]
    shared += ["--device", args.device, "--rounds", 1 if args.rehearse else 5]
    if args.timm_train is not None:
        command = [sys.executable, BENCHMARKS / "loops.py", args.timm_train, "--output", args.output / "loops"]
        command += ["--device", args.device, "--workers", workers(args), *(["--rehearse"] if args.rehearse else [])]
        yield Job("speed", "loops", command)
    if args.rehearse:  # without compiled steps, which take minutes on a CPU
        tiny = ["--batch-size", 2, "--steps", 1, "--threads", 1]
        yield Job("speed", "tiny", [*shared, "--model", SHAPES[0][0], *tiny])
        return
    for batch, (model, size), compiled in itertools.product((128, 256), SHAPES, (False, True)):
        command = [*shared, "--model", model, "--img-size", size, "--batch-size", batch]
        command += ["--torchcompile", "--no-memory"] if compiled else []
        command += ["--dataset", args.data_dir / "fashion_mnist" if size == 32 else ""]  # the hardest steps to feed
        yield Job("speed", f"{model}-{size}-{batch}{'-compiled' * compiled}", command)


def accuracy(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs on Fashion-MNIST."""
    for seed, case in itertools.product(seeds(args), ("full", *protocol.LARGE_GARMENTS)):
        yield training("accuracy", case, seed, args)


def typefaces(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs on typefaces."""
    for seed, case in itertools.product(seeds(args), protocol.LARGE_TYPEFACES):
        yield training("typefaces", case, seed, args)


def words(args: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs on words in 200 typefaces, whose students are kept."""
    data = plain_dataset(TRAINING["words"], args.output / "data" if args.rehearse else args.data_dir, args.rehearse)
    shared = [sys.executable, ROOT / "train.py", "--dataset", data, "--epochs", 1 if args.rehearse else 30]
    shared += ["--workers", workers(args), *(["--torchcompile"] if args.torchcompile else [])]
    shared += ["--img-size", 64 if args.rehearse else 128, "--crop-padding", 8]
    for seed, recipe, method in itertools.product(seeds(args), WORD_RECIPES, ("frskd", "ce")):
        name = f"{recipe}-{method}-{seed}{suffix(args)}"
        command = [*shared, "--config", recipe, "--method", method, "--seed", seed, "--resume", "auto"]
        yield Job("words", name, [*command, "--output-dir", args.output / "words" / name], continues=True)


def training(stage: str, case: str, seed: int, args: argparse.Namespace) -> Job:
    """Return the runs of cross-entropy and FRSKD on a case of the protocol."""
    command = [sys.executable, BENCHMARKS / "budgets.py", "--data", case, "--methods", "ce + smoothing", "frskd"]
    command += ["--seeds", seed, "--output", args.output / f"accuracy{suffix(args)}.csv"]
    command += ["--run-dir", args.output / f"runs{suffix(args)}"]
    command += ["--data-dir", args.output / "data" if args.rehearse else args.data_dir]
    command += [*(["--rehearse"] if args.rehearse else []), *(["--torchcompile"] if args.torchcompile else [])]
    return Job(stage, f"{case}-{seed}{suffix(args)}", command, continues=True)


def suffix(args: argparse.Namespace) -> str:
    """Return the end of the names of training jobs and their files, which differ with compiled steps."""
    return "-compiled" * args.torchcompile


def seeds(args: argparse.Namespace) -> Sequence[int]:
    """Return the seeds of training."""
    return (1,) if args.rehearse else (1, 2, 3)


def workers(args: argparse.Namespace) -> int:
    """Return the number of processes that decode images."""
    return 1 if args.rehearse else max(1, (os.cpu_count() or 1) - 2)


def remaining(args: argparse.Namespace) -> list[tuple[int, Job]]:
    """Return the jobs of the chosen stages that are not done, each after its place in `LATER`, in the order of these.

    Tests and measurements of another commit do not count.
    """
    own = commit()
    counted = [r for r in read(args.output / "jobs.csv") if r["stage"] in TRAINING or r.get("commit") == own]
    status = {(row["stage"], row["job"]): row["status"] for row in counted}
    found = [(status.get((job.stage, job.name), ""), job) for job in jobs(args)]
    return sorted(((LATER.get(how, 0), job) for how, job in found if how != "done"), key=lambda place: place[0])


def work(args: argparse.Namespace) -> int:
    """Run the jobs that are not done until the time is over; return the exit status."""
    limit = 60 * args.minutes - GRACE
    failed, first = False, True
    for _, job in remaining(args):
        left = START + limit - time.monotonic()
        needed = COMPILATION * args.torchcompile if job.continues else limit / 8
        if left <= (0 if first else needed):
            return time_is_over(args)
        start, log = time.monotonic(), args.output / "logs" / f"{job.stage}-{job.name}.log"
        result = execute(job, log, left)
        if result == "stopped" and not job.continues:
            result = "too long" if first else "too late"
        row = {"stage": job.stage, "job": job.name, "status": result, "seconds": round(time.monotonic() - start, 1)}
        append(args.output / "jobs.csv", [row | {"commit": commit()}])
        print(*row.values(), flush=True)
        if result == "failed":
            print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOGGED:], sep="\n", flush=True)
        elif result != "done":
            return time_is_over(args)
        failed, first = failed or result == "failed", False
    return int(failed)


def time_is_over(args: argparse.Namespace) -> int:
    """Return the exit status of a call that left jobs to do."""
    if all(place == GIVEN_UP for place, _ in remaining(args)):
        print(f"What is left failed or takes longer than --minutes {args.minutes:g}.")
        return 1
    print("The time is over: run the same command again.")
    return NOT_FINISHED


def execute(job: Job, log: Path, seconds: float) -> str:
    """Run a job for a limited time; return 'done', 'failed' or 'stopped'."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(part) for part in job.command],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            preexec_fn=os.setpgrp,  # a group, to be stopped whole; no new session, which would outlive a killed call
        )
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


def refuse_incomplete() -> None:
    """Exit if a package or the GPU is missing; print which GPU it is."""
    try:
        import pytest  # noqa: F401
        import torch

        import frskd_train.trainer  # noqa: F401
    except ImportError as error:
        sys.exit(f"error: {error}: install the package with its extra dev.")
    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU here; --rehearse runs everything with tiny sizes on the CPU.")
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)


def make_data(args: argparse.Namespace) -> None:
    """Create the datasets that training needs; exit if packages are missing."""
    from frskd_timm.errors import UserError

    try:
        for name in dict.fromkeys(DATASETS.values()):
            print(plain_dataset(name, args.data_dir))
    except UserError as error:
        sys.exit(f"error: {error}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags without importing torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--output", type=Path, help="folder of results and logs; runs/gpu by default")
    parser.add_argument("--minutes", type=float, default=9, help="time of one call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--timm-train", type=Path, metavar="FILE", help="train.py of timm's repository")
    parser.add_argument("--torchcompile", action="store_true", help="compile the steps of the last three stages")
    parser.add_argument("--data", action="store_true", help="create the datasets and exit")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where the datasets are")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    args = parser.parse_args(arguments)
    args.output = (args.output or ROOT / "runs" / ("gpu-rehearsal" if args.rehearse else "gpu")).resolve()
    args.data_dir, args.timm_train = args.data_dir.resolve(), args.timm_train and args.timm_train.resolve()
    args.device = "cpu" if args.rehearse else args.device
    if args.timm_train is not None and not args.timm_train.is_file():
        parser.error(f"There is no file {args.timm_train}.")
    if 60 * args.minutes <= GRACE:
        parser.error(f"--minutes must be above {GRACE / 60:g}: that long a call may wait for a checkpoint at its end.")
    if not set(args.stages) <= set(STAGES) or not (args.stages or args.data):
        parser.error(f"Name one or more stages: {', '.join(STAGES)}.")
    return args


def main() -> None:
    """Run the chosen stages."""
    args = parse()
    if args.data:
        make_data(args)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    if args.rehearse:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        refuse_incomplete()
        for name in (DATASETS[stage] for stage in args.stages if stage in DATASETS):
            if not (args.data_dir / name).exists():
                sys.exit(f"error: there is no dataset {args.data_dir / name}; gpu.py --data creates it.")
    sys.exit(work(args))


if __name__ == "__main__":
    main()
