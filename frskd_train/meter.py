"""Sums of loss terms and hits that stay on the device, and the scores made of them."""

from collections.abc import Callable, Iterable, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F


class TrainMeter:
    """Running sums over the steps of an epoch; reading them is the only synchronisation.

    Sums are kept in float64, so that an epoch entered at a checkpoint goes on with the very same numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self._sums = torch.zeros(0, dtype=torch.float64, device=device)
        self._first_bad = torch.zeros(0, dtype=torch.float64, device=device)
        self.steps = 0

    def update(self, result: Mapping[str, Tensor]) -> None:
        """Adds the loss and the terms of one step."""
        if not self.names:
            self.names = [name for name in result if name.startswith("loss")]
            self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
            self._first_bad = torch.full_like(self._sums, float("inf"))
        values = torch.stack([result[name].detach().double() for name in self.names])
        self._sums += values
        bad = torch.where(torch.isfinite(values), float("inf"), float(self.steps))
        self._first_bad = torch.minimum(self._first_bad, bad)
        self.steps += 1

    def first_bad(self) -> tuple[str, int] | None:
        """The first term that was not finite and its step within the epoch, or None. Synchronises."""
        if not self.names or bool(torch.isinf(self._first_bad).all()):
            return None
        order = sorted(range(len(self.names)), key=lambda i: (float(self._first_bad[i]), self.names[i] == "loss"))
        return self.names[order[0]], int(self._first_bad[order[0]])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each term over the steps so far and over all processes. Synchronises."""
        if not self.steps:
            return {}
        sums = accelerator.reduce(self._sums.clone(), reduction="mean")
        return {name: float(value) / self.steps for name, value in zip(self.names, sums, strict=True)}

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"names": self.names, "sums": self._sums.tolist(), "steps": self.steps}

    def load(self, state: Mapping[str, object]) -> None:
        """Goes on from a checkpoint."""
        self.names = list(state["names"])  # type: ignore[call-overload]
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=self.device)
        self._first_bad = torch.full_like(self._sums, float("inf"))
        self.steps = int(state["steps"])  # type: ignore[call-overload]


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
