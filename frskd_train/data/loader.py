"""Reads batches: from memory, in the training process, or by worker processes while the network trains."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.synchronize import Event
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frskd_timm.errors import UserError, first_line
from frskd_train.data.cache import SKIP, Cache
from frskd_train.data.dataset import Batch, BatchRequest, SampleDataset
from frskd_train.data.splits import Split
from frskd_train.data.transforms import SampleTransform, as_is

GRACE = 60  # seconds that a worker lives on after SIGTERM, so that the step under way can be finished
Requests = Callable[[], Iterator[BatchRequest]]


@dataclass(frozen=True)
class Samples:
    """The samples of a split, and how they are read.

    Attributes:
        source: Encoded or decoded.
        workers: Processes that decode; 0 decodes in the training process.
        bad_images: Whether a sample that cannot be used stops, or is left out (in training: replaced by another).
        bad: Messages about the samples that were left out while streaming, by place.
    """

    source: Split | Cache
    workers: int
    bad_images: Literal["stop", "skip"]
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def split(self) -> Split:
        """The split that they come from."""
        return self.source.split if isinstance(self.source, Cache) else self.source


@dataclass
class _Sampler:
    """The sampler of a DataLoader that lives through all epochs: what it gives is set before each."""

    make: Requests = field(default=lambda: iter(()))

    def __iter__(self) -> Iterator[BatchRequest]:
        return self.make()


class Reader:
    """Runs requests for batches of some samples.

    Args:
        samples: What is read.
        transform: What is done to each sample.
        device: Where batches go.
        is_training: Keep workers between epochs, and take another sample for one that is left out.
    """

    def __init__(self, samples: Samples, transform: SampleTransform, device: torch.device, is_training: bool) -> None:
        self._samples = samples
        self._device = device
        self._dataset = SampleDataset(samples.source, transform, is_training and samples.bad_images == "skip")
        self._loader = None
        if samples.workers and isinstance(samples.source, Split):
            self._loader = DataLoader(
                self._dataset,
                sampler=_Sampler(),
                batch_size=None,  # a request is a batch
                num_workers=samples.workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=partial(_start_worker, _worker_ending()),
                persistent_workers=is_training,
                generator=torch.Generator(),  # else every pass draws from the global one
            )

    def run(self, requests: Requests) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives images uint8 [B, C, H, W] and targets of each request on the device; none of an unusable request.

        Raises:
            UserError: A sample that cannot be used if those stop, or a worker that died.
        """
        source = self._samples.source
        if isinstance(source, Cache) and isinstance(source.images, Tensor) and self._dataset.transform is as_is:
            yield from (source.batch(request.places, self._device) for request in requests())
            return
        for images, targets, bad in self._batches(requests):
            if bad and self._samples.bad_images == "stop":
                raise UserError(f"{next(iter(bad.values()))} ({SKIP}).")
            self._samples.bad.update(bad)
            if images is not None:
                yield images.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def _batches(self, requests: Requests) -> Iterator[Batch]:
        if self._loader is None:
            yield from (self._dataset[request] for request in requests())
            return
        assert isinstance(self._loader.sampler, _Sampler)
        self._loader.sampler.make = requests
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = first_line(error)
                raise UserError(f"A process that decodes images died ({reason}); try --workers 0.") from error
            yield batch


@cache
def _worker_ending() -> Event:
    """Set when this process ends, which a worker cannot tell from a scheduler's SIGTERM otherwise."""
    event = multiprocessing.get_context().Event()
    atexit.register(event.set)
    return event


def _start_worker(ending: Event, _: int) -> None:
    """What a worker does first; `ending` is that of `_worker_ending`."""

    # Ctrl-C and a scheduler's SIGTERM reach the workers too. The training process decides what follows, and needs them
    # to finish its step; but at its end, and for a worker that hangs, SIGTERM is meant.
    def end(*_: object) -> None:
        if ending.is_set() or not hasattr(signal, "alarm"):
            os._exit(0)
        signal.alarm(GRACE)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
