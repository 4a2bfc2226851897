"""Who sees which row when. Everything random is a pure function of seed, epoch, step and place in the global batch."""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from frskd_timm.errors import UserError

Rows = npt.NDArray[np.int64]
FIXED = 210308273  # seeds the choices of rows, so that runs with different seeds see the same splits


class Draw(IntEnum):
    """What random numbers are for: each has its own stream. Never 0, which NumPy's seeding does not see."""

    ORDER = 1
    IMAGE = 2
    CROP = 3
    PLACE = 4
    ERASE = 5
    MIX = 6


def generator_for(purpose: Draw, *key: int) -> np.random.Generator:
    """Return the generator of one purpose at one place, independent of all others."""
    return np.random.default_rng(np.random.SeedSequence([purpose, len(key), *key]))


@dataclass(frozen=True)
class Order:
    """Shares out the rows of each epoch's permutation among steps and processes; each takes `per_process` a step."""

    num_samples: int
    per_process: int
    rank: int
    world_size: int
    seed: int

    @classmethod
    def of(cls, num_samples: int, batch_size: int, rank: int, world_size: int, seed: int) -> "Order":
        """Make batches smaller where the dataset is smaller than one global batch.

        Raises:
            UserError: There are fewer images than processes.
        """
        per_process = min(batch_size, num_samples // world_size)
        if per_process < 1:
            raise UserError(
                f"There are {num_samples} training image(s) for {world_size} process(es); each needs at least one."
            )
        return cls(num_samples, per_process, rank, world_size, seed)

    @property
    def global_batch(self) -> int:
        """Rows that all processes together take each step."""
        return self.per_process * self.world_size

    @property
    def steps(self) -> int:
        """Steps per epoch; what is left of the last global batch is dropped."""
        return self.num_samples // self.global_batch

    @property
    def share(self) -> slice:
        """This process's part of a global batch."""
        return slice(self.rank * self.per_process, (self.rank + 1) * self.per_process)

    def permutation(self, epoch: int) -> Rows:
        """Return all samples in the order of an epoch, the same in all processes; not to be changed."""
        return _permutation(self.num_samples, self.seed, epoch)

    def places(self, step: int) -> slice:
        """Return the places in an epoch's permutation that this process takes at a step."""
        first = step * self.global_batch + self.share.start
        return slice(first, first + self.per_process)


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> Rows:
    return generator_for(Draw.ORDER, seed, epoch).permutation(num_samples)


def validation_share(num_samples: int, rank: int, world_size: int) -> slice:
    """Return the rows that a process validates on: all processes together take each once."""
    return slice(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def shuffled(count: int) -> Rows:
    """Return the numbers 0 to `count` - 1 in a fixed random order, which no seed of a run changes."""
    return np.random.default_rng(FIXED).permutation(count)


def spread(count: int, wanted: int) -> Rows:
    """Return at most `wanted` of the numbers 0 to `count` - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))
