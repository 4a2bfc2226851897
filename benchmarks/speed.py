"""What a training step costs: FRSKD beside plain cross-entropy, step by step in turn, and a CSV of it.

    python benchmarks/speed.py                      # the three students of docs/speed.md on this machine
    python benchmarks/speed.py --model resnet18_frskd --img-size 224 --batch-size 32 --precision bf16
    python benchmarks/speed.py --table speed.csv    # the table of docs/speed.md
    python benchmarks/speed.py --start-up           # seconds until the library, and train.py's help, are there

A whole step is timed: forward, backward, optimizer. Variants take turns within a round, so that what else the machine
does meets all of them; figures are medians over rounds, with the smallest and the largest. `float32` is a plain build
of the same mathematics that stands for the authors' code: float32, channels first, 1x1 convolutions after upsampling,
attention maps by elementary operations. Multiply-adds are counted in a training forward.
"""

import argparse
import csv
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
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import torch

PAPER = [("wide_resnet16_2_frskd", 32, 64), ("resnet18_frskd", 64, 64), ("resnet18_cifar_frskd", 32, 32)]
CLASSES = 100
Rates = list[float]


def plain_self_teacher(teacher: Any, features: Sequence["torch.Tensor"]) -> tuple[list["torch.Tensor"], "torch.Tensor"]:
    """A BiFPN self-teacher with channels by level, operation by operation as its equations are written."""
    import torch.nn.functional as F

    from frskd_timm.teachers.blocks import downsample, upsample

    def fuse(block: Any, maps: list["torch.Tensor"]) -> "torch.Tensor":
        weights = F.relu(block.weights)
        weights = weights / (weights.sum() + 1e-6)
        return block.blocks(sum(weight * F.relu(map_) for weight, map_ in zip(weights, maps, strict=True)))

    (layer,) = teacher.layers
    sizes = [(f.shape[-2], f.shape[-1]) for f in features]
    n = len(features)
    down_path = [layer.lateral[-1](features[-1])]
    for i in range(n - 2, -1, -1):
        up = layer.to_finer[i](upsample(F.relu(down_path[0]), sizes[i]))
        down_path.insert(0, fuse(layer.top_down[i], [layer.lateral[i](features[i]), up]))
    refined = down_path[:1]
    for i in range(1, n):
        maps = [layer.lateral2[i - 1](features[i]), *([down_path[i]] if i < n - 1 else [])]
        maps.append(layer.to_coarser[i - 1](downsample(F.relu(refined[-1]), sizes[i])))
        refined.append(fuse(layer.bottom_up[i - 1], maps))
    refined = [F.relu(map_) for map_ in refined]
    return refined, teacher.fc(refined[-1].mean(dim=(2, 3)))


def plain_loss(task: Any, images: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """The loss of an `FRSKDTask` with the default parts, without any of its shortcuts."""
    import torch.nn.functional as F

    def attention(map_: "torch.Tensor") -> "torch.Tensor":
        return F.normalize(map_.pow(2).mean(1).flatten(1))

    maps, logits = task.pyramid(task.student, images)
    refined, teacher_logits = plain_self_teacher(task.self_teacher, maps)
    t = task.temperature
    soft = (
        F.kl_div(F.log_softmax(logits / t, 1), F.softmax(teacher_logits.detach() / t, 1), reduction="batchmean") * t**2
    )
    distances = [(attention(f) - attention(r.detach())).pow(2).mean() for f, r in zip(maps, refined, strict=True)]
    hard = F.cross_entropy(logits, target) + F.cross_entropy(teacher_logits, target)
    return hard + task.alpha * soft + task.beta * sum(distances)


def without_fast_paths(task: Any) -> Any:
    """Turns the self-teacher's convolutions into torch's own, in place."""
    import torch

    for module in task.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.__class__ = torch.nn.Conv2d
    return task


def make_task(model: str, size: int, method: str) -> Any:
    """A task with the default parts."""
    import timm

    import frskd_timm  # noqa: F401  registers the students
    from frskd_timm.task import CrossEntropyTask, FRSKDTask

    student = timm.create_model(model, num_classes=CLASSES)
    return CrossEntropyTask(student) if method == "ce" else FRSKDTask.create(student, (3, size, size), CLASSES)


def make_step(
    task: Any, loss: Callable[..., Any], precision: str, device: "torch.device", fused: bool = True
) -> Callable[..., None]:
    """A training step of images and target."""
    import torch
    from timm.optim import create_optimizer_v2

    task.train()
    optimizer = create_optimizer_v2(task, opt="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step(images: "torch.Tensor", target: "torch.Tensor") -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(images, target)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def fast_step(model: str, size: int, method: str, precision: str, device: "torch.device") -> Callable[..., None]:
    """A step as train.py makes it: channels last, autocast."""
    import torch

    task: Any = make_task(model, size, method).to(device, memory_format=torch.channels_last)
    return make_step(task, lambda images, target: task(images, target)["loss"], precision, device)


def seconds(run: Callable[[], Any], device: "torch.device") -> float:
    """Wall time of a call, the device's work included."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def in_turn(
    variants: dict[str, Callable[[], Any]], images: int, rounds: int, device: "torch.device"
) -> dict[str, Rates]:
    """Images per second of each variant in each round, after one round that does not count."""
    rates: dict[str, Rates] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            took = seconds(run, device)
            if turn:
                rates[name].append(images / took)
    return rates


def data_loops(case: argparse.Namespace, step: Callable[..., None], device: "torch.device") -> dict[str, Any]:
    """Runs of `case.steps` steps: on one batch that is there already, and with the loop's own batches of each mode."""
    from frskd_train.data import load_data
    from frskd_train.settings import DataSettings, PreprocessingSettings

    def endless(mode: str) -> Iterator[tuple[Any, Any]]:
        settings = DataSettings(dataset=case.dataset, data_mode=mode)  # type: ignore[arg-type]
        data = load_data(settings, PreprocessingSettings(img_size=case.img_size), model_cfg={})
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


def multiply_adds(model: str, size: int, method: str) -> float:
    """Counted multiply-adds of one image's training forward, self-teacher included, in units of 1e9."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    task = make_task(model, size, method).train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task(torch.randn(2, 3, size, size), torch.tensor([0, 1]))
    return counter.get_total_flops() / 2 / 2 / 1e9


def peak_memory(case: argparse.Namespace, method: str) -> float:
    """Peak MiB of a fresh process that makes three steps: of the GPU, or resident beyond what the imports take."""
    command = [sys.executable, __file__, "--peak", method, "--model", case.model, "--img-size", str(case.img_size)]
    command += ["--batch-size", str(case.batch_size), "--precision", case.precision, "--device", case.device]
    done = subprocess.run([*command, "--threads", str(case.threads)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def report_peak(case: argparse.Namespace, device: "torch.device") -> None:
    """What the process of `peak_memory` does."""
    import timm  # noqa: F401
    import torch

    import frskd_timm  # noqa: F401

    before = resident("VmRSS")
    step, batch = fast_step(case.model, case.img_size, case.peak, case.precision, device), random_batch(case, device)
    for _ in range(3):
        step(*batch)
    mib = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident("VmHWM") - before
    print(mib)


def resident(name: str) -> float:
    """MiB of this process: 'VmRSS' now, 'VmHWM' at most so far; elsewhere than on Linux always the latter."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin at what the parent had
        return float(status.read_text().split(f"{name}:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def random_batch(case: argparse.Namespace, device: "torch.device") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Images in channels-last memory, and classes."""
    import torch

    torch.manual_seed(0)
    images = torch.randn(case.batch_size, 3, case.img_size, case.img_size, device=device)
    target = torch.randint(0, CLASSES, (case.batch_size,), device=device)
    return images.contiguous(memory_format=torch.channels_last), target


def spread(values: Sequence[float], digits: int = 0) -> str:
    """'371 (365..380)': median, smallest, largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def quotients(above: Rates, below: Rates) -> Rates:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def measure(case: argparse.Namespace, device: "torch.device") -> dict[str, Any]:
    """One row of the CSV."""
    import timm
    import torch

    import frskd_timm
    from frskd_train.device import machine_name

    images, target = random_batch(case, device)
    fast = {m: fast_step(case.model, case.img_size, m, case.precision, device) for m in ("ce", "frskd")}
    variants: dict[str, Callable[[], Any]] = {m: (lambda s=step: s(images, target)) for m, step in fast.items()}
    if case.reference:
        plain = without_fast_paths(make_task(case.model, case.img_size, "frskd").to(device))
        first = images.contiguous()
        reference = make_step(plain, lambda x, y: plain_loss(plain, x, y), "fp32", device, fused=False)
        variants["float32"] = lambda: reference(first, target)
    rates = in_turn(variants, case.batch_size, case.rounds, device)
    counts = {method: multiply_adds(case.model, case.img_size, method) for method in ("ce", "frskd")}
    row: dict[str, Any] = {
        "model": case.model,
        "img_size": case.img_size,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "ce_images_per_s": spread(rates["ce"]),
        "frskd_images_per_s": spread(rates["frskd"]),
        "ratio": spread(quotients(rates["ce"], rates["frskd"]), 2),
        "multiply_adds_ratio": f"{counts['frskd'] / counts['ce']:.2f}",
        "ce_gmacs": f"{counts['ce']:.3f}",
        "float32_images_per_s": spread(rates["float32"]) if case.reference else "",
        "times_float32": spread(quotients(rates["frskd"], rates["float32"]), 2) if case.reference else "",
    }
    if case.memory:
        row |= {f"{method}_peak_mib": f"{peak_memory(case, method):.0f}" for method in ("ce", "frskd")}
    if case.dataset:
        loops = in_turn(data_loops(case, fast["frskd"], device), case.steps * case.batch_size, 3, device)
        for mode in ("memory", "stream"):
            row[f"{mode}_loop_images_per_s"] = spread(loops[mode])
            lost = statistics.median(1 - q for q in quotients(loops[mode], loops["step"]))
            row[f"{mode}_lost_to_data_percent"] = f"{100 * lost:.1f}"
    name = torch.cuda.get_device_name() if device.type == "cuda" else machine_name()
    return row | {
        "device": device.type,
        "machine": name,
        "threads": torch.get_num_threads(),
        "rounds": case.rounds,
        "frskd_timm": frskd_timm.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def start_up(rounds: int) -> str:
    """Seconds of fresh processes that import timm, import this library, and show the help of train.py."""
    import torch

    commands = {"import timm": ["-c", "import timm"], "import frskd_timm": ["-c", "import frskd_timm"]}
    commands["train.py --help"] = ["train.py", "--help"]

    def runner(arguments: list[str]) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    rates = in_turn({name: runner(command) for name, command in commands.items()}, 1, rounds, torch.device("cpu"))
    took = {name: [1 / rate for rate in each] for name, each in rates.items()}
    lines = [f"{name}: {spread(each, 2)} s" for name, each in took.items()]
    added = [b - a for a, b in zip(took["import timm"], took["import frskd_timm"], strict=True)]
    ratio = quotients(took["import frskd_timm"], took["import timm"])
    return "\n".join([*lines, f"frskd_timm adds {spread(added, 2)} s to timm; ratio {spread(ratio, 3)}"])


def table(rows: Sequence[dict[str, str]]) -> str:
    """The Markdown table of a CSV."""
    head = "| student | images | plain, images/s | FRSKD, images/s | ratio | multiply-adds | times the float32 build |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        shape = f"{row['batch_size']} of {row['img_size']}x{row['img_size']}, {row['precision']}"
        cells = [f"`{row['model']}`", shape, row["ce_images_per_s"], row["frskd_images_per_s"], row["ratio"]]
        lines.append(f"| {' | '.join([*cells, row['multiply_adds_ratio'], row['times_float32']])} |")
    head = "| student | peak MiB, plain | peak MiB, FRSKD | loop, in memory | lost | loop, streaming | lost |"
    lines += ["", head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [f"`{row['model']}` {row['precision']}", row.get("ce_peak_mib", ""), row.get("frskd_peak_mib", "")]
        for mode in ("memory", "stream"):
            cells += [row.get(f"{mode}_loop_images_per_s", ""), row.get(f"{mode}_lost_to_data_percent", "") + "%"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags; needs no torch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="any timm model; without it, the three students of the paper")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: as train.py does")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: the GPU where there is one")
    parser.add_argument("--threads", type=int, help="of the CPU; by default all cores")
    parser.add_argument("--rounds", type=int, default=9, help="that each variant takes part in")
    parser.add_argument("--steps", type=int, default=5, help="steps of one run of the whole loop with data")
    parser.add_argument("--dataset", default="fashion_mnist_sample", help="for the whole loop; '' leaves it out")
    parser.add_argument("--no-reference", dest="reference", action="store_false", help="leave the float32 build out")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the peak memory out")
    parser.add_argument("--output", type=Path, default=Path("speed.csv"), help="the CSV; rows are added to it")
    parser.add_argument("--table", type=Path, metavar="CSV", help="print the table of these results, measure nothing")
    parser.add_argument("--start-up", action="store_true", help="measure imports and train.py's help, nothing else")
    parser.add_argument("--peak", choices=("ce", "frskd"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures the cases, prints each, adds each to the CSV."""
    case = parse()
    if case.table:
        with case.table.open(encoding="utf-8") as file:
            print(table(list(csv.DictReader(file))))
        return
    if case.start_up:
        print(start_up(case.rounds))
        return
    import torch

    from frskd_train.device import cores, keep_freed_memory, precision
    from frskd_train.settings import LoopSettings

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
    for model, img_size, batch_size in [(case.model, case.img_size, case.batch_size)] if case.model else PAPER:
        case.model, case.img_size, case.batch_size = model, img_size, batch_size
        row = measure(case, device)
        print(json.dumps(row, indent=2), flush=True)
        new = not case.output.exists()
        with case.output.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
