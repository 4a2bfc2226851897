"""Large datasets: decoded by worker processes while the network trains."""

import atexit
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.synchronize import Event
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frskd_timm.errors import UserError, first_line
from frskd_train.data.decode import BadImageError, quiet_pillow
from frskd_train.data.order import Draw, Order, Rows, generator_for, validation_share
from frskd_train.data.parts import Part
from frskd_train.data.transforms import Transform

Batch = tuple[Tensor | None, Tensor, list[str]]  # images, labels, messages about images that cannot be read
NEIGHBOURS = 16  # rows that are tried in the place of a bad one
GRACE = 60  # seconds that a worker lives on after SIGTERM, so that the step under way can be finished


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Puts the global generators back as they were: transforms draw from them, and a run's must not be disturbed."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_transforms(seed: int) -> None:
    """Seeds the global generators of the CPU that timm's and torchvision's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class Request:
    """One batch to be decoded.

    Attributes:
        places: Which of the rows in use.
        seeds: Of each image's transform; None where nothing is random.
    """

    places: Rows
    seeds: Rows | None = None


@dataclass(frozen=True)
class Decoding(Dataset):
    """Rows to pixels, a batch at a time, in a worker or in the training process.

    Attributes:
        part: The rows in use.
        transform: Image to uint8 [C, H, W].
        mode: L or RGB.
        replace: Take a neighbour for an image that cannot be read; else it is left out.
    """

    part: Part
    transform: Transform
    mode: Literal["L", "RGB"]
    replace: bool

    def __getitem__(self, request: Request) -> Batch:
        part = self.part
        pixels, labels, bad = [], [], []
        loaded = part.images.load_many(part.rows[request.places].tolist(), self.mode)
        with quiet_pillow(), untouched_randomness() if request.seeds is not None else nullcontext():
            for number, (place, image) in enumerate(zip(request.places.tolist(), loaded, strict=True)):
                tried = 0
                while isinstance(image, BadImageError):
                    bad.append(str(image))
                    tried += 1
                    if not self.replace or tried > NEIGHBOURS:
                        break
                    place = (place + 1) % len(part.rows)
                    (image,) = part.images.load_many([int(part.rows[place])], self.mode)
                else:
                    if request.seeds is not None:
                        seed_transforms(int(request.seeds[number]))
                    pixels.append(self.transform(image))
                    labels.append(int(part.labels[place]))
        return torch.stack(pixels) if pixels else None, torch.tensor(labels, dtype=torch.int64), bad


@dataclass
class Requests:
    """The sampler of a loader that lives through all epochs: what it gives is set before each."""

    make: Callable[[], Iterator[Request]] = field(default=lambda: iter(()))

    def __iter__(self) -> Iterator[Request]:
        return self.make()


@dataclass(frozen=True)
class StreamedImages:
    """Images of a split that are decoded when they are needed.

    Attributes:
        part: The rows in use.
        mode: L or RGB.
        workers: Processes that decode; 0 decodes in the training process.
        bad_images: Whether an image that cannot be read stops, or is left out (in training: replaced by the next).
        bad: Messages about the images that were left out so far.
    """

    part: Part
    mode: Literal["L", "RGB"]
    workers: int
    bad_images: Literal["stop", "skip"]
    bad: dict[str, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.part.rows)

    def loader(self, transform: Transform, device: torch.device, keep_workers: bool) -> DataLoader:
        """Makes a loader whose requests are set before each pass."""
        decoding = Decoding(self.part, transform, self.mode, keep_workers)
        return DataLoader(
            decoding,
            sampler=Requests(),
            batch_size=None,  # a request is a batch
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=partial(start_worker, worker_ending()),
            persistent_workers=keep_workers and self.workers > 0,
            generator=torch.Generator(),  # else every pass draws from the global one
        )

    def train_batches(
        self, loader: DataLoader, order: Order, epoch: int, start: int, device: torch.device, is_random: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a process's images and labels of each step from `start` on; seeds their transforms if `is_random`."""
        permutation = order.permutation(epoch)

        def requests() -> Iterator[Request]:
            for step in range(start, order.steps):
                places, seeds = permutation[order.places(step)], None
                if is_random:
                    generator = generator_for(Draw.IMAGE, order.seed, epoch, step)
                    seeds = generator.integers(2**63, size=order.global_batch)[order.share]
                yield Request(places, seeds)

        for images, labels in self._run(loader, requests, device):
            if len(labels) < order.per_process:
                raise UserError(f"{NEIGHBOURS} images in a row cannot be read; the last: {list(self.bad)[-1]}")
            yield images, labels

    def val_batches(
        self, loader: DataLoader, batch_size: int, rank: int, world: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a process's share of all images, in order."""
        share = np.arange(len(self))[validation_share(len(self), rank, world)]

        def requests() -> Iterator[Request]:
            return (Request(share[first : first + batch_size]) for first in range(0, len(share), batch_size))

        yield from self._run(loader, requests, device)

    def _run(
        self, loader: DataLoader, requests: Callable[[], Iterator[Request]], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert isinstance(loader.sampler, Requests)
        loader.sampler.make = requests
        for images, labels, bad in with_workers_alive(loader):
            if bad and self.bad_images == "stop":
                raise UserError(f"{bad[0]} (--bad-images skip leaves such images out)")
            self.bad.update(dict.fromkeys(bad))
            if images is not None:
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def with_workers_alive(loader: DataLoader) -> Iterator[Batch]:
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(f"a process that decodes images died ({first_line(error)}); try --workers 0") from error
        yield batch


@cache
def worker_ending() -> Event:
    """Set when this process ends, which a worker cannot tell from a scheduler's SIGTERM otherwise."""
    event = multiprocessing.get_context().Event()
    atexit.register(event.set)
    return event


def start_worker(ending: Event, _: int) -> None:
    """What a worker does first; `ending` is that of `worker_ending`."""

    # Ctrl-C and a scheduler's SIGTERM reach the workers too. The training process decides what follows, and needs them
    # to finish its step; but at its end, and for a worker that hangs, SIGTERM is meant.
    def end(*_: object) -> None:
        if ending.is_set() or not hasattr(signal, "alarm"):
            os._exit(0)
        signal.alarm(GRACE)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
