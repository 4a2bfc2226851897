"""Run one FRSKD step of one small architecture per timm module, and write the results to the documentation.

`python tests/backbones.py` rewrites the tables of docs/backbones.md (10 minutes); the tests compare them.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.pyramid import Pyramid
from frskd_timm.task import FRSKDTask
from frskd_train.system.convolutions import adapt_convolutions

DOCUMENT = Path(__file__).parents[1] / "docs" / "backbones.md"
BEGIN, END = "<!-- {} begin -->", "<!-- {} end -->"
CLASSES = 5
SIDES = (64, 84, 128)  # pixels, tried before the default size of a model; 84 suits patches of 14


class Row(NamedTuple):
    """A row of the documentation's table."""

    module: str
    architecture: str
    image: str
    levels: str
    before: str

    def __str__(self) -> str:
        return f"| {self.module} | `{self.architecture}` | {self.image} | {self.levels} | {self.before} |"


HEADER = "| module | architecture | image | levels: channels at size | `overhaul` |\n|---|---|---|---|---|"


def modules() -> list[str]:
    """List timm's modules; the students of this package have their own tests."""
    return [module for module in timm.list_modules() if not module.startswith("frskd_")]


def smallest(module: str) -> str:
    """Return the architecture of a module with the fewest parameters, the first by name among equals."""

    def parameters(name: str) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())

    return min(timm.list_models(module=module), key=parameters)


def build(architecture: str) -> tuple[nn.Module, int]:
    """Create a model and find the smallest of a few image sizes at which FRSKD accepts it.

    Raises:
        UserError: No size is accepted; the message is the one for the default size.
    """
    cfg = timm.get_pretrained_cfg(architecture)
    own = cfg.input_size[-1]
    model = None
    for side in (*SIDES, own):
        torch.manual_seed(0)
        try:
            if model is None or cfg.fixed_input_size:
                size = {"img_size": side} if cfg.fixed_input_size else {}
                model = timm.create_model(architecture, num_classes=CLASSES, **size)
            Pyramid(model, (3, side, side))
        except (UserError, AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError):
            if side == own:
                raise
        else:
            return model, side
    raise AssertionError("not reached")


def reached(model: nn.Module, loss: Tensor, least: float = 0.0) -> tuple[set[str], set[str]]:
    """Return the names of parameters that a loss gives a gradient, and of those whose gradient is not zero.

    Gradients up to `least` times the largest count as zero: rounding errors where a BN cancels a scale.
    """
    model.zero_grad(set_to_none=True)
    loss.backward()
    sizes = {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return set(sizes), {name for name, size in sizes.items() if size > least * max(sizes.values())}


class Step(NamedTuple):
    """The results of one FRSKD step.

    Attributes:
        side: Height and width of the images.
        task: Student and self-teacher.
        differences: Largest difference between the task's logits and `model(x)`, by mode.
        loss: The FRSKD loss.
        missed: Parameters that cross-entropy reaches and FRSKD does not.
        unreached: Parameters that neither reaches.
        idle: Parameters outside the student that FRSKD does not reach.
        before: Whether the maps before their activations are available.
    """

    side: int
    task: FRSKDTask
    differences: dict[str, float]
    loss: float
    missed: set[str]
    unreached: set[str]
    idle: set[str]
    before: bool


def step(architecture: str) -> Step:
    """Run one FRSKD step on two random images, in the memory format that training uses."""
    model, side = build(architecture)
    task = FRSKDTask.create(model, (3, side, side), CLASSES)
    adapt_convolutions(task)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    target = torch.tensor([0, 3])

    differences = {}
    task.eval()
    with torch.no_grad():
        differences["eval"] = float((model(images) - task.predict(images)["student"]).abs().max())
    task.train()
    torch.manual_seed(0)  # the same dropout in both
    logits = model(images)
    by_ce, moved_by_ce = reached(model, nn.functional.cross_entropy(logits, target), least=1e-5)
    torch.manual_seed(0)
    result = task(images, target)
    differences["train"] = float((logits - result["output"]).detach().abs().max())
    by_frskd, moved_by_frskd = reached(task, result["loss"])

    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_student = {name.removeprefix("student.") for name in by_frskd if name.startswith("student.")}
    moved = {name.removeprefix("student.") for name in moved_by_frskd}
    try:
        Pyramid(model, (3, side, side), preactivation=True)
        before = True
    except UserError:
        before = False
    return Step(
        side=side,
        task=task,
        differences=differences,
        loss=float(result["loss"].detach()),
        missed=(by_ce - of_student) | (moved_by_ce - moved),
        unreached=names - by_ce - of_student,
        idle={name for name, p in task.named_parameters() if not name.startswith("student.")} - by_frskd,
        before=before,
    )


def row(module: str, architecture: str, done: Step) -> Row:
    """Return the row of a module."""
    pyramid = done.task.pyramid
    levels = zip(pyramid.channels, pyramid.sizes, strict=True)
    return Row(
        module,
        architecture,
        str(done.side),
        ", ".join(f"{channels} at {height}x{width}" for channels, (height, width) in levels),
        "yes" if done.before else "-",
    )


def documented(kind: str) -> list[list[str]]:
    """Return the cells of a generated table: 'works' or 'refused'."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.split(BEGIN.format(kind))[1].split(END.format(kind))[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in lines]


def sweep() -> Iterator[tuple[str, Row | list[Any]]]:
    """Yield ('works', row) or ('refused', [module, architecture, reason]) for every module."""
    for module in modules():
        architecture = smallest(module)
        try:
            yield "works", row(module, architecture, step(architecture))
        except Exception as error:
            yield "refused", [module, f"`{architecture}`", str(error).split("\n")[0]]
        gc.collect()


def write() -> None:
    """Rewrite the tables of the documentation."""
    tables = {"works": [HEADER], "refused": ["| module | architecture | reason |\n|---|---|---|"]}
    for kind, cells in sweep():
        line = str(cells) if isinstance(cells, Row) else f"| {' | '.join(cells)} |"
        tables[kind].append(line)
        print(line, file=sys.stderr, flush=True)
    text = DOCUMENT.read_text(encoding="utf-8")
    for kind, lines in tables.items():
        lines = lines if len(lines) > 1 else ["None."]
        head, rest = text.split(BEGIN.format(kind))
        tail = rest.split(END.format(kind))[1]
        table = "\n".join([BEGIN.format(kind), *lines, END.format(kind)])
        text = head + table + tail
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
