"""What is summed or collected over the samples of a split: calibration, temperature, confusions and mistakes."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from frskd_train.report.evaluation import Calibration, Mistake

BINS = 15  # of the confidence, as in Guo et al., 2017
KEPT = 100  # mistakes
MATRIX = 1000  # most classes whose pairs are counted in a matrix; sorting them needs less memory but more time
TEMPERATURES = torch.logspace(-1, 1, 233)  # in steps of 2%
PIXELS = 8192  # largest number of samples of a batch that the temperature is fitted to, chosen at random


def predicted(logits: Tensor, is_dense: bool) -> Tensor:
    """Return the classes [N] with the largest of the logits [N, K].

    Of equal logits, frequent in bfloat16, it chooses the one that counts in validation during training: for pixels the
    first one, for images that of timm's evaluator.
    """
    return logits.argmax(dim=1) if is_dense else logits.topk(min(5, logits.shape[1]), dim=1).indices[:, 0]


class CalibrationMetric(Metric):
    """Sums for `Calibration`, of logits divided by a temperature. torchmetrics' own keeps every confidence."""

    bins: Tensor
    sums: Tensor

    def __init__(self, temperature: float = 1.0, is_dense: bool = False) -> None:
        super().__init__()
        self.temperature, self.is_dense = temperature, is_dense
        self.add_state("bins", torch.zeros(BINS, 3, dtype=torch.float64), "sum")  # samples, confidence, hits
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), "sum")  # NLL, Brier score

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits [N, K] and classes [N]."""
        logarithms = (logits / self.temperature).log_softmax(dim=1)
        probabilities = logarithms.exp()
        confidence, given = probabilities.amax(dim=1), predicted(logits, self.is_dense)
        own = probabilities.gather(1, target[:, None])[:, 0]
        brier = probabilities.square().sum(dim=1) - 2 * own + 1
        self.sums += torch.stack([F.nll_loss(logarithms, target, reduction="sum"), brier.sum()])
        confidence = confidence.nan_to_num().double()
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        self.bins.index_add_(0, place, torch.stack([torch.ones_like(confidence), confidence, given == target], dim=1))

    def compute(self) -> Tensor:
        """Return the bins, followed by NLL and Brier score."""
        return torch.cat([self.bins.flatten(), self.sums])


class TemperatureMetric(Metric):
    """The temperature with the smallest NLL."""

    losses: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("losses", torch.zeros(len(TEMPERATURES), dtype=torch.float64), "sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add logits [N, K] and classes [N]."""
        count = len(target)
        if count > PIXELS:  # pixels: all of them would take longer than the rest of the evaluation
            chosen = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:PIXELS].to(target.device)
            logits, target = logits[chosen], target[chosen]
        values = (F.cross_entropy(logits / value, target, reduction="sum") for value in TEMPERATURES.tolist())
        self.losses += count / len(target) * torch.stack([*values])

    def compute(self) -> Tensor:
        """Return the temperature; NaN without a sample."""
        return TEMPERATURES[int(self.losses.argmin())] if self.losses.any() else torch.tensor(torch.nan)


class Confusions:
    """How often each class was given to the samples of each class, in one process.

    Only the pairs that occur are counted: a matrix of 10,000 classes would have 100 million entries.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._pairs = torch.empty(0, dtype=torch.long)  # true class * classes + predicted class, each pair once
        self._counts = torch.empty(0, dtype=torch.long)

    def add(self, logits: Tensor, given: Tensor, target: Tensor) -> None:
        """Add logits [N, K], predicted classes [N] and true classes [N]."""
        codes = target * self._classes + given
        if self._classes <= MATRIX:
            counted = codes.bincount()
            found = counted.nonzero()[:, 0]
            counts = counted[found]
        else:
            found, counts = codes.unique(return_counts=True)
        self._pairs, self._counts = _summed([(self._pairs, self._counts), (found.cpu(), counts.cpu())])

    def gather(self) -> Tensor:
        """Return true class, predicted class and number of samples for the pairs of all processes, [M, 3]."""
        pairs, counts = _summed(gather_object([(self._pairs, self._counts)]))
        return torch.stack([pairs // self._classes, pairs % self._classes, counts], dim=1)


def _summed(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return every pair once, with the sum of its counts."""
    pairs, places = torch.cat([pairs for pairs, _ in parts]).unique(return_inverse=True)
    return pairs, torch.zeros_like(pairs).index_add_(0, places, torch.cat([counts for _, counts in parts]))


class Mistakes:
    """The most confident mistakes of one process."""

    def __init__(self) -> None:
        self._seen = 0
        self._found = torch.empty(0, 4, dtype=torch.float64)  # confidence, place, true, given

    def add(self, logits: Tensor, given: Tensor, target: Tensor) -> None:
        """Add logits [N, K], predicted classes [N] and true classes [N]."""
        confidence = logits.softmax(dim=1).amax(dim=1)
        place = torch.arange(self._seen, self._seen + len(target), device=target.device)
        self._seen += len(target)
        wrong = given != target
        found = torch.stack([value[wrong].double() for value in (confidence, place, target, given)], dim=1).cpu()
        found = torch.cat([self._found, found])
        self._found = found[found[:, 0].argsort(descending=True, stable=True)[:KEPT]]

    def gather(self, rows: list[int]) -> list[Mistake]:
        """Return the most confident mistakes of all processes; `rows` has the row of each image of this process."""
        own = [(score, rows[int(place)], int(true), int(given)) for score, place, true, given in self._found.tolist()]
        found = sorted(gather_object(own), key=lambda mistake: (-mistake[0], mistake[1]))[:KEPT]
        return [Mistake(row, true, given, round(confidence, 4)) for confidence, row, true, given in found]


def read_bins(found: Tensor) -> Calibration:
    """Compute the scores from the result of `CalibrationMetric`."""
    bins, sums = found[:-2].reshape(BINS, 3), found[-2:]
    count, confidence, hits = bins.unbind(dim=1)
    nll, brier = (sums / count.sum()).tolist()
    ece = (confidence - hits).abs().sum() / count.sum()
    means = ([finite(value) for value in (part / count).tolist()] for part in (confidence, hits))
    return Calibration(round(nll, 4), round(float(ece), 4), round(brier, 4), count.long().tolist(), *means)


def finite(value: float) -> float | None:
    """Return a rounded number; None for NaN."""
    return round(value, 4) if value == value else None
