"""Training and validation batches of one process: from memory, or read in this process or by worker processes."""

import atexit
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import groupby
from multiprocessing.synchronize import Event

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frskd_timm.augment import TwoViews
from frskd_timm.errors import UserError, first_line
from frskd_train.data.augment import BatchAugmentation, Normalize
from frskd_train.data.cache import SKIP, Cache
from frskd_train.data.images import BadImageError, quiet_pillow
from frskd_train.data.sampler import BatchRequest, Order, Rows, untouched_randomness
from frskd_train.data.splits import Sample, Split
from frskd_train.data.transforms import SampleTransform, as_is
from frskd_train.settings import DataSettings

# torch's warning in each pass where there are fewer CPUs than --workers, 2 by default.
warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")

GRACE = 60  # seconds that a worker continues after SIGTERM, so that the current step can finish
Batch = tuple[Tensor | None, Tensor, dict[int, str]]  # images, targets, messages about samples that cannot be used


@dataclass(frozen=True)
class Samples:
    """The encoded or decoded samples of a split, and how to read them.

    `bad` are messages about the samples that were left out while streaming, by place.
    """

    source: Split | Cache
    transform: SampleTransform
    settings: DataSettings
    bad: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def split(self) -> Split:
        """Split of the samples."""
        return self.source.split if isinstance(self.source, Cache) else self.source


class SampleDataset(Dataset):
    """Dataset that converts requests to batches, in a worker or in the training process.

    With `replace`, unusable samples are replaced by others, so that a batch is only short if no sample at all can be
    used; otherwise they are left out.
    """

    def __init__(self, samples: Samples, replace: bool) -> None:
        self._source, self._transform, self._replace = samples.source, samples.transform, replace
        self._bad: dict[int, str] = {}  # found by this worker so far

    def __getitem__(self, request: BatchRequest) -> Batch:
        images, targets = [], []
        bad: dict[int, str] = {}
        places, seeds = (numbers.tolist() for numbers in request)
        with quiet_pillow(), untouched_randomness():
            for place, seed, found in zip(places, seeds, self._source.read(places), strict=True):
                if isinstance(found, Sample):
                    sample: Sample | None = found
                else:
                    bad[place] = str(found)
                    sample = self._other(place, bad) if self._replace else None
                if sample is not None:
                    image, target = self._transform(sample, seed)
                    images.append(image)
                    targets.append(target)
        if not images:
            return None, torch.empty(0), bad
        return torch.stack(images), torch.stack(targets), bad

    def _other(self, place: int, bad: dict[int, str]) -> Sample | None:
        """Return the fixed replacement of an unusable sample, far away: its neighbours may be unusable as well."""
        count = len(self._source)
        stride = next(step for step in range(max(1, round(0.618 * count)), 2 * count + 2) if math.gcd(step, count) == 1)
        self._bad |= bad
        for candidate in ((place + attempt * stride) % count for attempt in range(1, count)):
            if candidate in self._bad:
                continue
            (sample,) = self._source.read([candidate])
            if not isinstance(sample, BadImageError):
                return sample
            self._bad[candidate] = bad[candidate] = str(sample)
        return None


class Reader:
    """Read requested batches of samples to a device; in training, replace bad samples."""

    def __init__(self, samples: Samples, device: torch.device, is_training: bool) -> None:
        self._samples, self._device = samples, device
        self._dataset = SampleDataset(samples, is_training and samples.settings.bad_images == "skip")
        self._requests: list[BatchRequest] = []
        self._loader = None
        if samples.settings.workers and isinstance(samples.source, Split):
            self._loader = DataLoader(
                self._dataset,
                sampler=self._requests,
                batch_size=None,  # a request is a batch
                num_workers=samples.settings.workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=partial(_start_worker, _worker_ending()),
                # Validation keeps its workers only where starting one takes seconds, because it imports torch again.
                persistent_workers=is_training or multiprocessing.get_start_method() != "fork",
                generator=torch.Generator(),  # otherwise every pass draws from the global generator
            )

    def run(self, requests: Sequence[BatchRequest]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images uint8 [B, C, H, W] and targets of each request, except requests without a usable sample.

        Raises:
            UserError: A sample cannot be used and `bad_images` is 'stop', or a worker died.
        """
        source = self._samples.source
        if isinstance(source, Cache) and isinstance(source.images, Tensor) and self._samples.transform is as_is:
            yield from (source.batch(places, self._device) for places, _ in requests)
            return
        for images, targets, bad in self._batches(requests):
            if bad and self._samples.settings.bad_images == "stop":
                raise UserError(f"{next(iter(bad.values()))} ({SKIP}).")
            self._samples.bad.update(bad)
            if images is not None:
                yield images.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def _batches(self, requests: Sequence[BatchRequest]) -> Iterator[Batch]:
        if self._loader is None:
            yield from (self._dataset[request] for request in requests)
            return
        self._requests[:] = requests
        try:
            yield from self._loader
        except (RuntimeError, OSError, EOFError) as error:
            # A dead worker may also cause a connection error; exceptions of a worker contain "Caught ... in".
            is_lost = isinstance(error, OSError | EOFError) and "Caught" not in str(error)
            if not is_lost and not is_loss_of_a_worker(error):
                raise
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise the same loss once more
            raise UserError(loss_of_a_worker(error)) from error


def is_loss_of_a_worker(error: BaseException) -> bool:
    """Return whether an error is about a dead worker, which torch may raise anywhere in the training process."""
    said = str(error)
    return isinstance(error, RuntimeError) and ("DataLoader worker (pid" in said or "Pin memory thread exited" in said)


def loss_of_a_worker(error: BaseException) -> str:
    """Return the message about a dead worker."""
    return f"A process that decodes images died ({first_line(error)}); try --workers 0."


@cache
def _worker_ending() -> Event:
    """Return an event that is set when this process ends, which distinguishes that from a scheduler's SIGTERM."""
    event = multiprocessing.get_context().Event()
    atexit.register(event.set)
    return event


def _start_worker(ending: Event, _: int) -> None:
    """Prepare a worker process; `ending` is the event of `_worker_ending`."""

    # Ctrl-C and a scheduler's SIGTERM also reach the workers, which the training process needs to finish its step. At
    # its end, and for a worker that hangs, SIGTERM takes effect.
    def end(*_: object) -> None:
        if ending.is_set() or not hasattr(signal, "alarm"):
            os._exit(0)
        signal.alarm(GRACE)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the training process is gone.

    Torch compares parents to notice that, but from Python 3.14 on, the parent of a worker is a server of its own.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


@dataclass(eq=False)
class TrainBatches:
    """The training batches of one process; `len()` is the number of steps per epoch.

    All random numbers depend only on seed, epoch, step and place in the global batch, so that an epoch can be entered
    at any step, and several processes together see what one process with the same global batch sees (except for the
    partners in Mixup and CutMix, which come from the process's own batch). An epoch always has all its steps with full
    batches, so that processes never disagree: images that are left out are replaced by others.
    """

    samples: Samples
    order: Order
    augmentation: BatchAugmentation
    normalize: Normalize

    def __len__(self) -> int:
        return self.order.steps

    def unused(self, steps: int) -> list[str]:
        """Return a note about `steps` batches per update that do not divide an epoch, if so."""
        rest = len(self) % steps
        if steps > len(self):
            return [f"--grad-accum-steps {steps}: an epoch has only {len(self)} batches, so it is one update."]
        return [f"--grad-accum-steps {steps}: the last {rest} of {len(self)} batches are left out."] if rest else []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor | TwoViews, Tensor]]:
        """Yield the batches of an epoch.

        Args:
            epoch: Counted from 0.
            start: First step; batches before it are neither decoded nor drawn.

        Yields:
            Normalised float32 images [B, C, H, W], or two views of them, and class numbers [B], or probabilities [B, K]
            under Mixup/CutMix, or masks [B, H, W], 255 where a pixel has no class.

        Raises:
            UserError: A streamed image cannot be used with --bad-images stop, or no image can be used.
        """
        order, step = self.order, start
        for images, targets in self._reader.run([order.request(epoch, step) for step in range(start, order.steps)]):
            if len(images) < order.per_process:
                break
            yield self.augmentation(images, targets.long(), self.normalize, order, epoch, step)
            step += 1
        if step < order.steps:
            first = next(iter(self.samples.bad.values()), "They have disappeared")
            count, split = len(self.samples), self.samples.split.name
            raise UserError(f"None of the {count} images of split {split} can be used; the first error is: {first}.")

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.samples, self.normalize.device, is_training=True)


class ValBatches:
    """The validation batches of one process; all processes together take each image exactly once.

    Images that keep their own size are grouped by size.
    """

    def __init__(self, samples: Samples, normalize: Normalize, batch_size: int, rank: int, world_size: int) -> None:
        self._samples, self._normalize = samples, normalize
        count = len(samples)
        sizes = samples.source.sizes if samples.split.targets.is_dense else [(0, 0)] * count
        by_size = sorted(range(count), key=lambda place: sizes[place])
        share = by_size[count * rank // world_size : count * (rank + 1) // world_size]
        self._batches: list[Rows] = []
        for _, group in groupby(share, key=lambda place: sizes[place]):
            places = np.array(list(group))
            self._batches += [places[first : first + batch_size] for first in range(0, len(places), batch_size)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._reader.run([(places, places) for places in self._batches]):
            yield self._normalize(images), targets.long()

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._samples, self._normalize.device, is_training=False)

    def rows(self) -> Rows:
        """Return the row in the split of each image of the last pass, in its order."""
        places = np.concatenate([np.zeros(0, np.int64), *self._batches])
        return self._samples.source.rows[places[~np.isin(places, list(self._samples.bad))]]
