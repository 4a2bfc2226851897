"""Requests to batches, in a worker process or in the training process."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from frskd_train.data.cache import Cache
from frskd_train.data.decode import quiet_pillow
from frskd_train.data.images import BadImageError
from frskd_train.data.sampler import Rows
from frskd_train.data.splits import Sample, Split
from frskd_train.data.transforms import SampleTransform

Batch = tuple[Tensor | None, Tensor, dict[int, str]]  # images, targets, messages about samples that cannot be used


@dataclass(frozen=True)
class BatchRequest:
    """One batch to be read.

    Attributes:
        places: Which of the samples.
        seeds: One for the transform of each sample.
    """

    places: Rows
    seeds: Rows


class SampleDataset(Dataset):
    """Samples, a batch at a time.

    Args:
        source: Encoded or decoded samples.
        transform: What is done to each sample.
        replace: Take another sample for one that cannot be used, so that a batch is short only if no sample at all
            can be used; else such samples are left out.
    """

    def __init__(self, source: Split | Cache, transform: SampleTransform, replace: bool) -> None:
        self.source = source
        self.transform = transform
        self.replace = replace
        self._bad: dict[int, str] = {}  # found by this worker so far

    def __getitem__(self, request: BatchRequest) -> Batch:
        images, targets = [], []
        bad: dict[int, str] = {}
        with quiet_pillow():
            samples = self.source.read(request.places.tolist())
            for place, seed, found in zip(request.places.tolist(), request.seeds.tolist(), samples, strict=True):
                sample = None if isinstance(found, BadImageError) else found
                if isinstance(found, BadImageError):
                    bad[place] = str(found)
                    sample = self._other(place, bad) if self.replace else None
                if sample is not None:
                    image, target = self.transform(sample, seed)
                    images.append(image)
                    targets.append(target)
        if not images:
            return None, torch.empty(0), bad
        return torch.stack(images), torch.stack(targets), bad

    def _other(self, place: int, bad: dict[int, str]) -> Sample | None:
        """The sample that always stands in for one that cannot be used.

        Candidates are far apart, so that a damaged stretch of the dataset is not replaced by one and the same sample.
        """
        count = len(self.source)
        stride = next(step for step in range(max(1, round(0.618 * count)), 2 * count + 2) if math.gcd(step, count) == 1)
        self._bad |= bad
        for attempt in range(1, count):
            candidate = (place + attempt * stride) % count
            if candidate in self._bad:
                continue
            (sample,) = self.source.read([candidate])
            if not isinstance(sample, BadImageError):
                return sample
            self._bad[candidate] = bad[candidate] = str(sample)
        return None
