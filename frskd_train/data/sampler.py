"""Distribution of rows to steps and processes. Randomness depends only on seed, epoch, step and place in the batch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from frskd_timm.errors import UserError

Rows = npt.NDArray[np.int64]
BatchRequest = tuple[Rows, Rows]  # places of samples to read, and a seed for the transform of each
# Purposes of random numbers, each with its own stream: 1, 2, ...; never 0, which NumPy's seeding ignores.
Draw = IntEnum("Draw", ["ORDER", "IMAGE", "CROP", "PLACE", "ERASE", "MIX"])
ROW_SEED = 210308273  # seed for choosing rows, so that runs with different seeds use the same splits


def generator_for(purpose: Draw, *key: int) -> np.random.Generator:
    """Return the generator for one purpose at one place, independent of all others."""
    return np.random.default_rng(np.random.SeedSequence([purpose, len(key), *key]))


def step_seed(*parts: int) -> int:
    """Derive a seed for torch's global generator from integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Restore the state of the global generators, which transforms and Mixup seed and use."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class Order:
    """Distribution of each epoch's permutation to steps and processes.

    With `repeats`, the first rows of the permutation are repeated that many times in a row, and the last are left out.
    Raises UserError if there are fewer images than processes.
    """

    num_samples: int
    batch_size: int
    rank: int
    world_size: int
    seed: int
    repeats: float = 1.0

    def __post_init__(self) -> None:
        if self.num_samples < self.world_size:
            raise UserError(
                f"There are {self.num_samples} training image(s) for {self.world_size} process(es); each needs one."
            )

    @property
    def per_process(self) -> int:
        """Number of rows per step and process, smaller if the dataset is smaller than one global batch."""
        return min(self.batch_size, self.num_samples // self.world_size)

    @property
    def global_batch(self) -> int:
        """Number of rows of all processes per step."""
        return self.per_process * self.world_size

    @property
    def steps(self) -> int:
        """Steps per epoch; an incomplete last global batch is dropped."""
        return self.num_samples // self.global_batch

    @property
    def share(self) -> slice:
        """Part of a global batch for this process."""
        return slice(self.rank * self.per_process, (self.rank + 1) * self.per_process)

    def permutation(self, epoch: int) -> Rows:
        """Return the samples in the order of an epoch, the same in all processes; must not be modified."""
        return _permutation(self.num_samples, self.seed, epoch, self.repeats)

    def whole(self, epoch: int, step: int) -> Rows:
        """Return the samples of all processes at a step."""
        return self.permutation(epoch)[step * self.global_batch :][: self.global_batch]

    def request(self, epoch: int, step: int) -> BatchRequest:
        """Return the batch of this process at a step."""
        seeds = generator_for(Draw.IMAGE, self.seed, epoch, step).integers(2**63, size=self.global_batch)
        return self.whole(epoch, step)[self.share], seeds[self.share]


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int, repeats: float) -> Rows:
    rows = generator_for(Draw.ORDER, seed, epoch).permutation(num_samples)
    return rows[(np.arange(num_samples) / max(repeats, 1)).astype(np.int64)]


def shuffled(count: int) -> Rows:
    """Return the numbers 0 to `count` - 1 in a fixed random order that does not depend on the seed of a run."""
    return np.random.default_rng(ROW_SEED).permutation(count)


def evenly_spaced(count: int, wanted: int) -> Rows:
    """Return at most `wanted` evenly spread numbers from 0 to `count` - 1."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
