"""Watching a training run: means of the loss terms, a note if nothing is learned, and skipping of bad updates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from frskd_timm.errors import UserError
from frskd_train.errors import after_divergence

RECENT = 50  # steps averaged for progress lines within an epoch; the epoch's mean would hide recent changes


class TrainMeter:
    """Running sums over the steps of an epoch, kept on the device; only reading them synchronises.

    Sums are in float64, so that an epoch resumed at a checkpoint continues with exactly the same numbers. Steps with a
    term that is not finite are counted and excluded from the sums.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps = device, 0
        self._start([])

    def _start(self, names: list[str]) -> None:
        self.names = names
        self._sums, self._recent = torch.zeros(2, len(names), dtype=torch.float64, device=self.device)
        self._first_bad = torch.full_like(self._sums, float("inf"))
        self._good = torch.zeros(1, dtype=torch.float64, device=self.device)
        self._bad_before = 0  # bad steps before the current update; known only if bad steps are skipped

    def update(
        self,
        result: Mapping[str, Tensor],
        accelerator: Accelerator | None = None,
        updated: bool = True,
        discarded: bool = False,
    ) -> None:
        """Add the loss and the terms of one step; with an accelerator, a bad loss in any process counts in all.

        The last step of an update (`updated`) that was `discarded`, because of its gradients, counts as bad, whatever
        its loss, unless another step of the same update did.
        """
        if not self.names:
            self._start([name for name in result if name.startswith("loss")])
        values = torch.stack([result[name].detach().double() for name in self.names])
        finite = torch.isfinite(values)
        if discarded and finite.all() and self.bad_steps() == self._bad_before:  # the gradient of the sum is to blame
            finite[self.names.index("loss")] = False
        if accelerator is not None and accelerator.num_processes > 1:
            finite = accelerator.reduce(finite.double(), reduction="mean") == 1
        good = finite.all()
        self._good += good
        self._sums += torch.where(good, values, 0.0)
        newer = self._recent + (values - self._recent) / self._good.clamp(1, RECENT)
        self._recent = torch.where(good, newer, self._recent)
        self._first_bad = torch.minimum(self._first_bad, torch.where(finite, float("inf"), float(self.steps)))
        self.steps += 1
        if accelerator is not None and updated:
            self._bad_before = self.bad_steps()

    def bad_steps(self) -> int:
        """Return how many steps had a term that was not finite. Synchronises."""
        return self.steps - int(self._good)

    def first_bad(self) -> tuple[str, int] | None:
        """Return the first term that was not finite and its step within the epoch, or None. Synchronises."""
        if not self.names or bool(torch.isinf(self._first_bad).all()):
            return None
        first = min(range(len(self.names)), key=lambda i: (float(self._first_bad[i]), self.names[i] == "loss"))
        return self.names[first], int(self._first_bad[first])

    def refuse_bad(self, allowed: int, epoch: int, checkpoint: Path | None) -> None:
        """Raise UserError if more than `allowed` steps of this epoch had a term that was not finite. Synchronises."""
        found = self.first_bad()
        if found is not None and self.bad_steps() > allowed:
            what = "loss, or its gradient," if found[0] == "loss" else found[0]
            raise UserError(
                f"{what} became NaN or infinite at step {found[1] + 1} of epoch {epoch + 1} ({self.bad_steps()} "
                f"such steps so far); {after_divergence(checkpoint)}, or try --clip-grad, --no-amp or --skip-nonfinite."
            )

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the mean of each term over the finite steps so far and over all processes. Synchronises."""
        if not self.steps:
            return {}
        *sums, good = accelerator.reduce(torch.cat([self._sums, self._good]), reduction="sum").tolist()
        return {name: value / good for name, value in zip(self.names, sums, strict=True)} if good else {}

    def recent(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over about the last `RECENT` steps. Synchronises."""
        values = accelerator.reduce(self._recent.clone(), reduction="mean").tolist() if self.steps else []
        return dict(zip(self.names, values, strict=bool(self.steps)))

    def state(self, accelerator: Accelerator) -> dict[str, object]:
        """Return the state for a checkpoint, averaged over all processes; all of them have to call this."""
        values = accelerator.reduce(torch.cat([self._sums, self._recent, self._good]), reduction="mean").tolist()
        count = len(self.names)
        bad = [None if step == float("inf") else step for step in self._first_bad.tolist()]
        shared = {"sums": values[:count], "recent": values[count:-1], "good": values[-1]}
        return {"names": self.names, "steps": self.steps, **shared, "first_bad": bad}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.steps = int(state["steps"])
        self._start(list(state["names"]))
        self._sums += torch.tensor(state["sums"], dtype=torch.float64, device=self.device)
        self._good += state["good"]
        self._recent += torch.tensor(state["recent"], dtype=torch.float64, device=self.device)
        bad = [float("inf") if step is None else step for step in state["first_bad"]]
        self._first_bad = torch.tensor(bad, dtype=torch.float64, device=self.device)
        self._bad_before = self.bad_steps()


def learning_note(
    history: Sequence[Mapping[str, Any]],
    cross_entropy: float,
    shown: Mapping[str, str],
    classes: int,
    updates: int,
) -> str | None:
    """Return a note, after 100 updates, about a student that does not learn, which other falling losses could hide.

    It is based on the rows of the finished epochs, the student's cross-entropy in the last steps and the first score
    shown.
    """
    if updates < 100:
        return None
    guessing = math.log(classes)
    if cross_entropy >= 0.995 * guessing:
        return (
            f"Note: the student's cross-entropy was {cross_entropy:.3f} over the last steps; guessing among "
            f"{classes} classes gives {guessing:.3f}, so it is not learning. A lower --lr may help."
        )
    score, name = next(iter(shown.items()))
    scores = [row[score] for row in history if score in row]
    if not history or score not in history[-1]:  # not validated in this epoch
        return None
    if score == "top1" and scores[-1] <= 100 / classes:
        return f"Note: the student's {name} of {scores[-1]:.2f}% is no better than guessing among {classes} classes."
    if scores[-1] < 0.5 * max(scores):
        return f"Note: the student's {name} fell to {scores[-1]:.2f}% from {max(scores):.2f}%."
    return None


class NonfiniteGuard:
    """Skip updates whose gradients are not finite, and undo everything that their forward passes changed.

    All processes hold the same gradients, so they make the same decision without communication. Buffers that became
    NaN, such as running statistics, are restored by the process that has them, whether or not the update is skipped.
    With float16, the gradient scaler already skips such updates.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._buffers = [buffer.clone() for buffer in module.buffers()]

    @torch.no_grad()
    def check(self, optimizer: AcceleratedOptimizer) -> bool:
        """Check the complete gradients before they are clipped and applied; return whether they are discarded.

        Synchronises.
        """
        bad = False
        if optimizer.scaler is None:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            bad = not bool(torch.isfinite(get_total_norm(gradients)))
            if bad:
                optimizer.zero_grad()
        discarded = bad
        bad = bad or bool(torch.stack([buffer.isnan().any() for buffer in self.module.buffers()]).any())
        for kept, buffer in zip(self._buffers, self.module.buffers(), strict=True):
            if bad:
                buffer.copy_(kept)
            else:
                kept.copy_(buffer)
        return discarded
