"""Large datasets: decoded by worker processes while the network trains."""

import atexit
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.synchronize import Event
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frskd_timm.errors import UserError
from frskd_train.data.columns import Labels
from frskd_train.data.decode import BadImageError, Images, quiet_pillow
from frskd_train.data.order import Draw, Order, generator_for, validation_share
from frskd_train.data.transforms import Transform

Key = tuple[int, int | None]  # a row, and the seed of its augmentation if there is any
Item = tuple[Tensor | None, int, list[str]]
Batch = tuple[Tensor | None, Tensor, list[str]]
NEIGHBOURS = 16  # rows that are tried in the place of a bad one
GRACE = 60  # seconds that a worker lives on after SIGTERM, so that the step under way can be finished


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators that transforms draw from, and puts them back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class Decoding(Dataset):
    """Rows to pixels, in a worker or in the training process.

    Attributes:
        images: the split's encoded images.
        rows: the split's rows in use.
        labels: the class of each of these.
        transform: image to uint8 [C, H, W].
        mode: L or RGB.
        replace: take a neighbour for an image that cannot be read; else it is left out.
    """

    images: Images
    rows: Labels
    labels: Labels
    transform: Transform
    mode: Literal["L", "RGB"]
    replace: bool

    def __getitem__(self, key: Key) -> Item:
        with quiet_pillow():
            return self._read(*key)

    def _read(self, place: int, seed: int | None) -> Item:
        bad: list[str] = []
        for neighbour in range(NEIGHBOURS if self.replace else 1):
            index = (place + neighbour) % len(self.rows)
            try:
                image = self.images.load(int(self.rows[index]), self.mode)
            except BadImageError as error:
                bad.append(str(error))
                continue
            if seed is None:
                return self.transform(image), int(self.labels[index]), bad
            with isolated_randomness(seed):
                return self.transform(image), int(self.labels[index]), bad
        return None, 0, bad


@dataclass
class _Batches:
    """The batch sampler of a loader that lives through all epochs: what it gives is set before each."""

    keys: Callable[[], Iterator[list[Key]]] = field(default=lambda: iter(()))

    def __iter__(self) -> Iterator[list[Key]]:
        return self.keys()


@dataclass(frozen=True)
class StreamedImages:
    """Images of a split that are decoded when they are needed.

    Attributes:
        images: the split's encoded images.
        rows: the rows in use.
        labels: the class of each of these.
        mode: L or RGB.
        workers: processes that decode; 0 decodes in the training process.
        bad_images: whether an image that cannot be read stops, or is left out (in training: replaced by the next).
        bad: messages about the images that were left out so far.
    """

    images: Images
    rows: Labels
    labels: Labels
    mode: Literal["L", "RGB"]
    workers: int
    bad_images: Literal["stop", "skip"]
    bad: dict[str, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def loader(self, transform: Transform, device: torch.device, keep_workers: bool) -> DataLoader:
        """Makes a loader whose `batch_sampler` is set before each pass."""
        decoding = Decoding(self.images, self.rows, self.labels, transform, self.mode, keep_workers)
        return DataLoader(
            decoding,
            batch_sampler=_Batches(),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=partial(_start_worker, _ending()),
            persistent_workers=keep_workers and self.workers > 0,
            generator=torch.Generator(),  # else every pass draws from the global one
        )

    def train_batches(
        self, loader: DataLoader, order: Order, epoch: int, start: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a process's images and labels of each step from `start` on."""
        permutation = order.permutation(epoch)

        def keys() -> Iterator[list[Key]]:
            for step in range(start, order.steps):
                yield [
                    (int(permutation[place]), int(generator_for(Draw.IMAGE, order.seed, epoch, place).integers(2**63)))
                    for place in order.places(step)
                ]

        for images, labels in self._run(loader, keys, device):
            if len(labels) < order.per_process:
                raise UserError(f"{NEIGHBOURS} images in a row cannot be read; the last: {list(self.bad)[-1]}")
            yield images, labels

    def val_batches(
        self, loader: DataLoader, batch_size: int, rank: int, world: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a process's share of all images, in order."""
        share = validation_share(len(self), rank, world)

        def keys() -> Iterator[list[Key]]:
            for first in range(share.start, share.stop, batch_size):
                yield [(row, None) for row in range(first, min(first + batch_size, share.stop))]

        yield from self._run(loader, keys, device)

    def _run(
        self, loader: DataLoader, keys: Callable[[], Iterator[list[Key]]], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert isinstance(loader.batch_sampler, _Batches)
        loader.batch_sampler.keys = keys
        for images, labels, bad in _with_workers_alive(loader):
            if bad and self.bad_images == "stop":
                raise UserError(f"{bad[0]} (--bad-images skip leaves such images out)")
            self.bad.update(dict.fromkeys(bad))
            if images is not None:
                yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _with_workers_alive(loader: DataLoader) -> Iterator[Batch]:
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).splitlines()[0].rstrip(". ")
            raise UserError(f"a process that decodes images died ({reason}); try --workers 0") from error
        yield batch


def _collate(items: Sequence[Item]) -> Batch:
    good = [(image, label) for image, label, _ in items if image is not None]
    bad = [message for _, _, messages in items for message in messages]
    if not good:
        return None, torch.empty(0, dtype=torch.int64), bad
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good]), bad


@cache
def _ending() -> Event:
    """Set when this process ends, which a worker cannot tell from a scheduler's SIGTERM otherwise."""
    event = multiprocessing.get_context().Event()
    atexit.register(event.set)
    return event


def _start_worker(ending: Event, _: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the workers too. The training process decides what follows, and needs them
    # to finish its step; but at its end, and for a worker that hangs, SIGTERM is meant.
    def end(*_: object) -> None:
        if ending.is_set() or not hasattr(signal, "alarm"):
            os._exit(0)
        signal.alarm(GRACE)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
