"""Who sees which row when. Everything random is a pure function of seed, epoch, step and place in the global batch."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from frskd_timm.errors import UserError

Rows = npt.NDArray[np.int64]


class Draw(IntEnum):
    """What random numbers are for: each has its own stream. Never 0, which NumPy's seeding does not see."""

    ORDER = 1
    IMAGE = 2
    CROP = 3
    PLACE = 4
    ERASE = 5
    MIX = 6


def generator_for(purpose: Draw, *key: int) -> np.random.Generator:
    """The generator of one purpose at one place, independent of all others."""
    return np.random.default_rng(np.random.SeedSequence([purpose, len(key), *key]))


@dataclass(frozen=True)
class Order:
    """Shares out the rows of each epoch's permutation among steps and processes.

    Attributes:
        num_rows: Rows of the dataset.
        per_process: Rows that a process takes each step.
        rank: This process.
        world: Number of processes.
        seed: The run's.
    """

    num_rows: int
    per_process: int
    rank: int
    world: int
    seed: int

    @classmethod
    def of(cls, num_rows: int, batch_size: int, rank: int, world: int, seed: int) -> "Order":
        """Makes batches smaller where the dataset is smaller than one global batch.

        Raises:
            UserError: There are fewer images than processes.
        """
        per_process = min(batch_size, num_rows // world)
        if per_process < 1:
            raise UserError(f"There are {num_rows} training image(s) for {world} process(es); each needs at least one.")
        return cls(num_rows, per_process, rank, world, seed)

    @property
    def global_batch(self) -> int:
        """Rows that all processes together take each step."""
        return self.per_process * self.world

    @property
    def steps(self) -> int:
        """Steps an epoch; what is left of the last global batch is dropped."""
        return self.num_rows // self.global_batch

    @property
    def share(self) -> slice:
        """This process's part of a global batch."""
        return slice(self.rank * self.per_process, (self.rank + 1) * self.per_process)

    def permutation(self, epoch: int) -> Rows:
        """All rows in the order of an epoch, the same in all processes."""
        return generator_for(Draw.ORDER, self.seed, epoch).permutation(self.num_rows)

    def places(self, step: int) -> slice:
        """The places in an epoch's permutation that this process takes at a step."""
        first = step * self.global_batch + self.share.start
        return slice(first, first + self.per_process)


def validation_share(num_rows: int, rank: int, world: int) -> slice:
    """The rows that a process validates on: all processes together take each once."""
    return slice(num_rows * rank // world, num_rows * (rank + 1) // world)
