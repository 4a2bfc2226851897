"""Sums of loss terms and hits that stay on the device, and the scores made of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

RECENT = 50  # steps that what is shown within an epoch is about: an epoch's mean would hide what happened last


class TrainMeter:
    """Running sums over the steps of an epoch; reading them is the only synchronisation.

    Sums are kept in float64, so that an epoch entered at a checkpoint goes on with the very same numbers. Steps with a
    term that is not finite are counted and left out of the sums.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        self._start([])

    def _start(self, names: list[str]) -> None:
        self.names = names
        self._sums, self._recent = torch.zeros(2, len(names), dtype=torch.float64, device=self.device)
        self._first_bad = torch.full_like(self._sums, float("inf"))
        self._good = torch.zeros(1, dtype=torch.float64, device=self.device)

    def update(self, result: Mapping[str, Tensor]) -> None:
        """Adds the loss and the terms of one step."""
        if not self.names:
            self._start([name for name in result if name.startswith("loss")])
        values = torch.stack([result[name].detach().double() for name in self.names])
        finite = torch.isfinite(values)
        good = finite.all()
        self._good += good
        self._sums += torch.where(good, values, 0.0)
        newer = self._recent + (values - self._recent) / self._good.clamp(1, RECENT)
        self._recent = torch.where(good, newer, self._recent)
        self._first_bad = torch.minimum(self._first_bad, torch.where(finite, float("inf"), float(self.steps)))
        self.steps += 1

    def bad_steps(self) -> int:
        """How many steps had a term that was not finite. Synchronises."""
        return self.steps - int(self._good)

    def first_bad(self) -> tuple[str, int] | None:
        """The first term that was not finite and its step within the epoch, or None. Synchronises."""
        if not self.names or bool(torch.isinf(self._first_bad).all()):
            return None
        order = sorted(range(len(self.names)), key=lambda i: (float(self._first_bad[i]), self.names[i] == "loss"))
        return self.names[order[0]], int(self._first_bad[order[0]])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each term over the good steps so far and over all processes. Synchronises."""
        if not self.steps:
            return {}
        *sums, good = accelerator.reduce(torch.cat([self._sums, self._good]), reduction="sum").tolist()
        return {name: value / good for name, value in zip(self.names, sums, strict=True)} if good else {}

    def recent(self, accelerator: Accelerator) -> dict[str, float]:
        """The same over about the last `RECENT` steps. Synchronises."""
        values = accelerator.reduce(self._recent.clone(), reduction="mean").tolist() if self.steps else []
        return dict(zip(self.names, values, strict=bool(self.steps)))

    def state(self, accelerator: Accelerator) -> dict[str, object]:
        """What a checkpoint keeps: the mean over the processes, which all call this, so that all can go on from it."""
        values = accelerator.reduce(torch.cat([self._sums, self._recent, self._good]), reduction="mean").tolist()
        count = len(self.names)
        bad = [None if step == float("inf") else step for step in self._first_bad.tolist()]
        shared = {"sums": values[:count], "recent": values[count:-1], "good": values[-1]}
        return {"names": self.names, "steps": self.steps, **shared, "first_bad": bad}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.steps = int(state["steps"])
        self._start(list(state["names"]))
        self._sums += torch.tensor(state["sums"], dtype=torch.float64, device=self.device)
        # Younger than the format: before them, no step was left out.
        self._good += state.get("good", self.steps)
        recent = state.get("recent") or [value / max(1, self.steps) for value in state["sums"]]
        self._recent += torch.tensor(recent, dtype=torch.float64, device=self.device)
        bad = [float("inf") if step is None else step for step in state.get("first_bad", [None] * len(self.names))]
        self._first_bad = torch.tensor(bad, dtype=torch.float64, device=self.device)


def learning_note(
    history: Sequence[Mapping[str, Any]],
    recent: Mapping[str, float],
    shown: Mapping[str, str],
    num_classes: int,
    updates: int,
) -> str | None:
    """A sentence about a student that learns nothing, or no longer, which the other terms' fall would hide.

    Args:
        history: One row for each epoch that is over.
        recent: The loss terms of the last steps.
        shown: What scores are called by the name of their column; the first one is looked at.
        num_classes: Number of classes.
        updates: Optimizer updates so far; nothing is said of the first 100.
    """
    if updates < 100:
        return None
    guessing = math.log(num_classes)
    if recent.get("loss_ce", 0.0) >= 0.995 * guessing:
        return (
            f"note: the student's cross-entropy was {recent['loss_ce']:.3f} over the last steps; guessing among "
            f"{num_classes} classes gives {guessing:.3f}, so it learns nothing now. A lower --lr may help."
        )
    score, name = next(iter(shown.items()))
    scores = [row[score] for row in history if score in row]
    if score == "top1" and scores and scores[-1] <= 100 / num_classes:
        return (
            f"note: the student's {name} of {scores[-1]:.2f}% is no better than guessing among {num_classes} classes."
        )
    if scores and scores[-1] < 0.5 * max(scores):
        return f"note: the student's {name} fell to {scores[-1]:.2f}% from {max(scores):.2f}%."
    return None


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    accelerator: Accelerator,
) -> dict[str, dict[str, float]]:
    """Scores networks on all processes' validation images, each image once.

    Args:
        predict: Images to logits [B, classes] by network name.
        batches: This process's share of the images, with classes [B].
        accelerator: Adds the processes up.

    Returns:
        For each network: top1 and top5 in percent, loss (mean cross-entropy), images.
    """
    sums: dict[str, Tensor] = {}
    for images, target in batches:
        with accelerator.autocast():
            outputs = predict(images)
        for name, logits in outputs.items():
            logits = logits.float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = ranked == target[:, None]
            loss = F.cross_entropy(logits, target, reduction="sum")
            counts = torch.stack([hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(target), device=loss.device)])
            sums[name] = sums.get(name, 0) + counts.double()
    if accelerator.num_processes > 1:  # a process without images still has to take part
        sums = _with_all_names(sums, accelerator)
    scores = {}
    for name in sorted(sums, key=lambda name: name != "student"):
        top1, top5, loss, count = accelerator.reduce(sums[name].to(accelerator.device), reduction="sum").tolist()
        scores[name] = {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count, "images": count}
    return scores


def _with_all_names(sums: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    names = {name for rank_names in gather_object([sorted(sums)]) for name in rank_names}
    zero = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    return {name: sums.get(name, zero) for name in sorted(names)}
