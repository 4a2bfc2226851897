"""Scores of segmentation with the interface of timm's evaluators (`timm.task.ClassificationEvaluator`)."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from frskd_timm.losses.functional import IGNORED


def iou_of_classes(hits: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
    """Compute the IoU [K] in percent from counts of pixels [K]; NaN for a class neither labelled nor predicted."""
    return 100 * hits / (predicted + labelled - hits)


class SegmentationEvaluator:
    """Accumulate the mean loss per pixel, and mean IoU and pixel accuracy in percent.

    Pixels labelled 255 do not count, and the mean IoU is over the classes that occur in labels or predictions. Images
    beyond `max_samples`, such as the padding of a distributed sampler, are ignored.
    """

    default_metric = "miou"
    metric_names = ("loss", "miou", "pixel_accuracy")

    def __init__(self, num_classes: int, device: torch.device | None = None, *, max_samples: int | None = None) -> None:
        self.num_classes = num_classes
        self.device = torch.device(device or "cpu")
        if self.device.type == "mps":  # Apple's GPUs have no float64
            self.device = torch.device("cpu")
        self.max_samples = max_samples
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.num_samples = 0
        self.sums = torch.zeros(3 * self.num_classes + 1, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits [B, K, H, W] and classes [B, H, W] of a batch."""
        if self.max_samples is not None:
            count = max(0, self.max_samples - self.num_samples)
            output, target = output[:count], target[:count]
        self.num_samples, target = self.num_samples + len(output), target.long()
        loss = F.cross_entropy(output.float(), target, ignore_index=IGNORED, reduction="sum")
        labelled = target != IGNORED
        predicted, truth = output.argmax(dim=1)[labelled], target[labelled]
        found = (truth[predicted == truth], predicted, truth)
        counts = [torch.bincount(classes, minlength=self.num_classes) for classes in found]
        self.sums[:-1] += torch.cat(counts).to(self.device)
        self.sums[-1] += loss.to(self.device)

    def summary(self) -> dict[str, float]:
        """Return the scores of this process's images."""
        return self.compute()

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """Return the scores, with `distributed` of the images of all processes; NaN if no pixel is labelled."""
        sums = self.sums.clone()
        if distributed:
            dist.all_reduce(sums)
        hits, predicted, labelled = sums[:-1].view(3, self.num_classes)
        iou = iou_of_classes(hits, predicted, labelled)
        pixels = labelled.sum()
        return {
            "loss": float(sums[-1] / pixels),
            "miou": float(iou.nanmean()),
            "pixel_accuracy": 100 * float(hits.sum() / pixels),
        }
