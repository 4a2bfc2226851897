"""Score networks on the validation images of all processes, each image once."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

UNSCORED = "not scored: no validation image could be read, or none has a label"
Scores = dict[str, dict[str, float]]  # by network and name; percent, except losses and counts


@torch.no_grad()
def evaluate(
    create_evaluator: Callable[[], Any],
    predict: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    accelerator: Accelerator,
) -> Scores:
    """Score networks on the validation images of all processes, of which each has its own batches with targets.

    Args:
        create_evaluator: Returns an evaluator of timm's interface, such as `task.create_evaluator()`.
        predict: Returns logits by name of the network.
        batches: Images and targets.
        accelerator: The processes and their precision.

    Returns:
        The evaluator's scores and the number of `images` by name of the network, `student` first; empty if there are no
        images, or no label.
    """
    torch.backends.cudnn.benchmark = False  # images for segmentation differ in size
    evaluators: dict[str, Any] = defaultdict(create_evaluator)
    for images, target in batches:
        with accelerator.autocast():
            outputs = predict(images)
        for name, logits in outputs.items():
            evaluators[name].update(logits, target)
    counts = gather_object([(name, evaluator.num_samples) for name, evaluator in evaluators.items()])
    scores: Scores = {}
    for name in sorted({name for name, _ in counts}, key=lambda name: (name != "student", name)):
        # A process without images takes part with an empty evaluator.
        found = evaluators[name].compute(distributed=accelerator.num_processes > 1)
        if math.isnan(found[evaluators[name].default_metric]):
            return {}
        scores[name] = {**found, "images": sum(count for network, count in counts if network == name)}
    return scores
