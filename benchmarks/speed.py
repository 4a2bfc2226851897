"""Measure training steps of FRSKD and of cross-entropy, and write the results to a CSV file.

    python benchmarks/speed.py                      # the three students in docs/speed.md on this machine
    python benchmarks/speed.py --model resnet18_frskd --img-size 224 --batch-size 32 --precision bf16
    python benchmarks/speed.py --paper --output paper.csv   # with the self-teacher of the paper
    python benchmarks/speed.py --table speed.csv    # print the table in docs/speed.md
    python benchmarks/speed.py --costs --output costs.csv   # what FRSKD costs for various backbones
    python benchmarks/speed.py --start-up           # time of importing the package and of train.py --help

A whole step is timed: forward, backward and optimizer. The variants take turns in every round, so that other load on
the machine affects all of them; figures are medians over the rounds with the minimum and the maximum. With one CPU
thread, steps are measured in CPU time. `float32` is a plain implementation of the same loss that stands for the
authors' code: float32, channels first, 1x1 convolutions after upsampling, attention maps by elementary operations.
Multiply-adds are counted in a training forward pass.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from commits import commit  # noqa: E402
from speed_tables import costs, median_and_range, quotients, table  # noqa: E402

from tools.table_files import append, read_results  # noqa: E402

if TYPE_CHECKING:
    import torch

PAPER = [("wide_resnet16_2_frskd", 32, 64), ("resnet18_frskd", 64, 64), ("resnet18_cifar_frskd", 32, 32)]
# Widely used backbones with wide and with narrow maps, which FRSKD makes slower by different factors.
COSTS = (
    "resnet18_frskd", "resnet34_frskd", "resnet50_frskd", "densenet121", "efficientnet_b0_frskd", "hgnetv2_b0",
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "regnety_004", "convnext_atto", "vit_tiny_patch16_224",
)  # fmt: skip
Rates = list[float]


def seconds(run: Callable[[], Any], device: "torch.device", clock: Callable[[], float]) -> float:
    """Measure the time of a call, including the work of the device."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = clock()
    run()
    wait()
    return clock() - start


def in_turn(
    variants: dict[str, Callable[[], Any]],
    images: int,
    rounds: int,
    device: "torch.device",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Rates]:
    """Measure images per second of each variant in each round, after a warm-up round."""
    rates: dict[str, Rates] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            took = seconds(run, device, clock)
            if turn:
                rates[name].append(images / took)
    return rates


def data_loops(case: argparse.Namespace, step: Callable[..., None], device: "torch.device") -> dict[str, Any]:
    """Create runs of `case.steps` steps: on one fixed batch, and with batches of each data mode."""
    from frskd_train.data import load_data
    from frskd_train.settings import DataSettings, PreprocessingSettings
    from frskd_train.system.device import cores

    def endless(mode: str) -> Iterator[tuple[Any, Any]]:
        workers = max(2, cores() - 2)
        settings = DataSettings(dataset=case.dataset, data_mode=mode, workers=workers)  # type: ignore[arg-type]
        data = load_data(settings, PreprocessingSettings(img_size=(case.img_size,)), model_cfg={})
        batches = data.train_batches(case.batch_size, device=device)
        epoch = 0
        while True:
            yield from batches.epoch(epoch)
            epoch += 1

    sources = {mode: endless(mode) for mode in ("memory", "stream")}
    images, target = (part.clone() for part in next(sources["memory"]))

    def steps(source: Iterator[tuple[Any, Any]] | None) -> None:
        for _ in range(case.steps):
            step(*(next(source) if source else (images, target)))

    return {"step": lambda: steps(None), **{mode: (lambda s=source: steps(s)) for mode, source in sources.items()}}


def peak_memory(case: argparse.Namespace, method: str) -> float:
    """Measure the peak memory in MiB of three steps in a new process: of the GPU, or resident minus the imports."""
    command = [sys.executable, __file__, "--peak", method, "--model", case.model, "--img-size", str(case.img_size)]
    command += ["--batch-size", str(case.batch_size), "--precision", case.precision, "--device", case.device]
    command += ["--threads", str(case.threads), *(["--torchcompile"] if case.torchcompile else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def report_peak(case: argparse.Namespace, device: "torch.device") -> None:
    """Print what `peak_memory` reads; this runs in the new process."""
    import torch
    from steps import package_step, random_batch

    before = resident("VmRSS")
    step = package_step(case.model, case.img_size, case.peak, case.precision, device, case.torchcompile)
    batch = random_batch(case.img_size, case.batch_size, device)
    step(*batch)
    if device.type == "cuda":  # without what cuDNN's search for algorithms took
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step(*batch)
    mib = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident("VmHWM") - before
    print(mib)


def resident(name: str) -> float:
    """Read the resident memory of this process in MiB: 'VmRSS' now, 'VmHWM' the peak; only the peak outside Linux."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would start at the peak of the parent process
        return float(status.read_text().split(f"{name}:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(case: argparse.Namespace, device: "torch.device") -> dict[str, Any]:
    """Measure one row of the CSV."""
    import timm
    import torch
    from steps import gmacs, package_step, parameters, random_batch, reference_step

    import frskd_timm
    from frskd_train.system.device import machine_name

    images, target = random_batch(case.img_size, case.batch_size, device)
    case.steps = case.steps or (100 if device.type == "cuda" else 5)
    repeats = max(1, case.steps // 5)

    def repeated(step: Callable[..., None], *batch: torch.Tensor) -> Callable[[], Any]:
        return lambda: [step(*batch) for _ in range(repeats)]

    options = (case.precision, device, case.torchcompile)
    methods = {"ce": "ce", "frskd": case.method}
    steps = {name: package_step(case.model, case.img_size, method, *options) for name, method in methods.items()}
    variants = {name: repeated(step, images, target) for name, step in steps.items()}
    if case.reference:
        reference = reference_step(case.model, case.img_size, case.method, device)
        variants["float32"] = repeated(reference, images.contiguous(), target)
    alone = device.type == "cpu" and case.threads == 1  # CPU time, which other load hardly affects
    clock = time.process_time if alone else time.perf_counter
    rates = in_turn(variants, repeats * case.batch_size, case.rounds, device, clock)
    networks = parameters(case.model, case.img_size, case.method)
    counts = {name: gmacs(case.model, case.img_size, method) for name, method in methods.items()}
    row: dict[str, Any] = {
        "model": case.model,
        "img_size": case.img_size,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "torchcompile": case.torchcompile,
        "student_parameters": networks[0],
        "self_teacher_parameters": networks[1],
        "ce_images_per_s": median_and_range(rates["ce"]),
        "frskd_images_per_s": median_and_range(rates["frskd"]),
        "ratio": median_and_range(quotients(rates["ce"], rates["frskd"]), 2),
        "multiply_adds_ratio": f"{counts['frskd'] / counts['ce']:.2f}",
        "ce_gmacs": f"{counts['ce']:.3f}",
        "float32_images_per_s": median_and_range(rates["float32"]) if case.reference else "",
        "times_float32": median_and_range(quotients(rates["frskd"], rates["float32"]), 2) if case.reference else "",
    }
    print(json.dumps(row), flush=True)  # for the log, if something fails below
    if case.memory:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the new processes need it
        row |= {f"{name}_peak_mib": f"{peak_memory(case, method):.0f}" for name, method in methods.items()}
    if case.dataset:
        loops = in_turn(data_loops(case, steps["frskd"], device), case.steps * case.batch_size, 3, device)
        for mode in ("memory", "stream"):
            row[f"{mode}_loop_images_per_s"] = median_and_range(loops[mode])
            lost = statistics.median(1 - q for q in quotients(loops[mode], loops["step"]))
            row[f"{mode}_lost_to_data_percent"] = f"{100 * lost:.1f}"
    return row | {
        "device": device.type,
        "machine": machine_name(device),
        "threads": torch.get_num_threads(),
        "rounds": case.rounds,
        "frskd_timm": frskd_timm.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def start_up(rounds: int) -> str:
    """Measure new processes that import timm, import this package, and print the help of train.py."""
    import torch

    commands = {"import timm": ["-c", "import timm"], "import frskd_timm": ["-c", "import frskd_timm"]}
    commands["train.py --help"] = ["train.py", "--help"]

    def runner(arguments: list[str]) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    rates = in_turn({name: runner(command) for name, command in commands.items()}, 1, rounds, torch.device("cpu"))
    took = {name: [1 / rate for rate in each] for name, each in rates.items()}
    lines = [f"{name}: {median_and_range(each, 2)} s" for name, each in took.items()]
    added = [b - a for a, b in zip(took["import timm"], took["import frskd_timm"], strict=True)]
    ratio = quotients(took["import frskd_timm"], took["import timm"])
    return "\n".join(
        [*lines, f"frskd_timm adds {median_and_range(added, 2)} s to timm; ratio {median_and_range(ratio, 3)}"]
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags without importing torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="any timm model; by default the three students of the paper")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: same as train.py")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: the GPU if there is one")
    parser.add_argument("--torchcompile", action="store_true", help="compile the steps")
    paper = "the self-teacher of the paper (width 2, depth 2) instead of the default"
    parser.add_argument("--paper", dest="method", action="store_const", const="paper", default="frskd", help=paper)
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    parser.add_argument("--rounds", type=int, default=9, help="number of measurements of each variant")
    steps = "steps per measurement of the loop with data, five times those without; by default 5, on a GPU 100"
    parser.add_argument("--steps", type=int, help=steps)
    parser.add_argument("--dataset", default="fashion_mnist_sample", help="data of the whole loop; '' skips it")
    parser.add_argument("--no-reference", dest="reference", action="store_false", help="skip the float32 reference")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip the peak memory")
    parser.add_argument("--output", type=Path, default=Path("speed.csv"), help="CSV file to which rows are appended")
    parser.add_argument("--table", type=Path, metavar="CSV", help="print the tables of these results and exit")
    parser.add_argument("--costs", action="store_true", help="measure only the steps, of various backbones")
    parser.add_argument("--start-up", action="store_true", help="measure only imports and train.py --help")
    parser.add_argument("--peak", choices=("ce", "frskd", "paper"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name in ("img_size", "batch_size", "threads", "rounds", "steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    return args


def main() -> None:
    """Measure all cases, print each one and append it to the CSV."""
    case = parse()
    if case.table:
        print((costs if case.costs else table)(read_results(case.table)))
        return
    if case.start_up:
        print(start_up(case.rounds))
        return
    import torch

    from frskd_train.settings import LoopSettings
    from frskd_train.system.device import cores, keep_freed_memory, precision

    if case.device == "auto":
        case.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(case.device)
    case.threads = case.threads or cores()
    torch.set_num_threads(case.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if case.precision == "auto":
        case.precision = "bf16" if precision(LoopSettings(), device) == "bf16" else "fp32"
    if case.peak:
        report_peak(case, device)
        return
    if case.costs:
        case.reference = case.memory = case.dataset = False
    cases = [*PAPER, *((name, 224, 8) for name in COSTS)] if case.costs else PAPER
    for model, img_size, batch_size in [(case.model, case.img_size, case.batch_size)] if case.model else cases:
        case.model, case.img_size, case.batch_size = model, img_size, batch_size
        row = measure(case, device)
        print(json.dumps(row, indent=2), flush=True)
        append(case.output, [row])


if __name__ == "__main__":
    main()
