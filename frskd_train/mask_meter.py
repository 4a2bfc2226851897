"""Scores of segmentation, by torchmetrics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.segmentation.losses import IGNORED


class MaskScores(nn.Module):
    """Running scores of one network; labels of 255 do not count.

    Args:
        num_classes: Number of classes.
    """

    totals: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        import torchmetrics.classification as metrics  # here: classification runs need not wait for it

        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORED}
        self.iou = metrics.MulticlassJaccardIndex(average="none", zero_division=float("nan"), **options)
        self.accuracy = metrics.MulticlassAccuracy(average="micro", **options)
        self.register_buffer("totals", torch.zeros(3, dtype=torch.float64))  # loss, labelled pixels, images

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch: logits [B, K, H, W] and classes [B, H, W]."""
        logits = logits.float()
        predicted = logits.argmax(dim=1)
        self.iou.update(predicted, target)
        self.accuracy.update(predicted, target)
        loss = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        images = torch.tensor(len(target), device=target.device)
        self.totals += torch.stack([loss.double(), (target != IGNORED).sum().double(), images.double()])

    def compute(self, accelerator: Accelerator) -> dict[str, Any]:
        """The scores over all processes; all of them have to call this."""
        iou = self.iou.compute().double()
        accuracy = float(self.accuracy.compute())
        loss, pixels, images = accelerator.reduce(self.totals, reduction="sum").tolist()
        present = ~torch.isnan(iou)
        return {
            "miou": 100 * float(iou[present].mean()),
            "pixel_accuracy": 100 * accuracy,
            "loss": loss / max(pixels, 1),
            "images": images,
            "iou": [100 * float(value) if there else None for value, there in zip(iou, present, strict=True)],
        }


@torch.no_grad()
def evaluate_masks(
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    accelerator: Accelerator,
) -> dict[str, dict[str, Any]]:
    """Scores networks on all processes' validation images, each image once.

    Args:
        predict: Images to logits [B, K, H, W] by network name.
        batches: This process's share of the images, with classes [B, H, W], 255 where a pixel has none.
        accelerator: Adds the processes up.

    Returns:
        For each network: miou (the mean over the classes that are in the labels or the predictions), pixel_accuracy,
        iou (one number a class, None for a class that is in neither), all in percent; loss (mean cross-entropy of
        labelled pixels), images.
    """
    scores: dict[str, MaskScores] = {}
    for images, target in batches:
        with accelerator.autocast():
            outputs = predict(images)
        for name, logits in outputs.items():
            if name not in scores:
                scores[name] = MaskScores(logits.shape[1]).to(accelerator.device)
            scores[name].update(logits, target)
    if accelerator.num_processes > 1:  # a process without images still has to take part
        classes = {name: len(one.iou.confmat) for name, one in scores.items()}
        known = {name: count for counts in gather_object([classes]) for name, count in counts.items()}
        scores = {
            name: scores[name] if name in scores else MaskScores(count).to(accelerator.device)
            for name, count in sorted(known.items())
        }
    return {name: scores[name].compute(accelerator) for name in sorted(scores, key=lambda name: name != "student")}
