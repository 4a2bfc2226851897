"""Score networks on the validation images of all processes, each image once."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import IGNORED
from frskd_timm.segmentation.evaluator import iou_of_classes

Scores = dict[str, dict[str, Any]]  # by network and name; percent, except losses and counts


@dataclass(frozen=True)
class Measure:
    """Scoring of one task."""

    count: Callable[[Tensor, Tensor], Tensor]  # from float32 logits and targets of a batch to a float64 vector of sums
    scores: Callable[[Tensor], dict[str, Any]]  # from the sums over all images and processes


def _count_hits(logits: Tensor, target: Tensor) -> Tensor:
    """Count top-1 hits, top-5 hits, loss and images from logits [B, K] and classes [B]."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == target[:, None]
    loss = F.cross_entropy(logits, target, reduction="sum")
    images = torch.tensor(len(target), device=loss.device)
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, images]).double()


def _accuracies(sums: Tensor) -> dict[str, Any]:
    top1, top5, loss, images = sums.tolist()
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "loss": loss / images, "images": images}


def _count_pixels(logits: Tensor, target: Tensor) -> Tensor:
    """Count hits, predictions and labels per class, loss and images from logits [B, K, H, W] and classes [B, H, W]."""
    classes = logits.shape[1]
    loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    labelled = target != IGNORED
    predicted, truth = logits.argmax(dim=1)[labelled], target[labelled]
    counts = [torch.bincount(found, minlength=classes) for found in (truth[predicted == truth], predicted, truth)]
    images = torch.tensor(len(target), device=loss.device)
    return torch.cat([*counts, torch.stack([loss.double(), images.double()])]).double()


def _overlaps(sums: Tensor) -> dict[str, Any]:
    """Compute the mean IoU over classes that occur in labels or predictions; the IoU of other classes is None."""
    (hits, predicted, truth), (loss, images) = sums[:-2].reshape(3, -1), sums[-2:].tolist()
    iou = iou_of_classes(hits, predicted, truth)
    pixels = max(float(truth.sum()), 1.0)
    return {
        "miou": float(iou.nanmean()),
        "pixel_accuracy": 100 * float(hits.sum()) / pixels,
        "loss": loss / pixels,
        "images": images,
        "iou": [None if math.isnan(value) else value for value in iou.tolist()],
    }


CLASSIFICATION = Measure(_count_hits, _accuracies)
SEGMENTATION = Measure(_count_pixels, _overlaps)


@torch.no_grad()
def evaluate(
    measure: Measure,
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    accelerator: Accelerator,
) -> Scores:
    """Score networks on the validation images of all processes, of which each has its own batches with targets.

    `measure` is `CLASSIFICATION` or `SEGMENTATION`, and `predict` returns logits by name of the network. Returns scores
    by name of the network, `student` first; empty if there are no images.
    """
    sums: dict[str, Tensor] = {}
    for images, target in batches:
        with accelerator.autocast():
            outputs = predict(images)
        for name, logits in outputs.items():
            counts = measure.count(logits.float(), target)
            sums[name] = sums[name] + counts if name in sums else counts
    if accelerator.num_processes > 1:  # a process without images also has to take part in the sums
        sizes = dict(gather_object([(name, len(counts)) for name, counts in sums.items()]))
        for name in sorted(sizes):
            none = torch.zeros(sizes[name], dtype=torch.float64, device=accelerator.device)
            sums[name] = accelerator.reduce(sums.get(name, none), reduction="sum")
    return {name: measure.scores(sums[name]) for name in sorted(sums, key=lambda name: name != "student")}
