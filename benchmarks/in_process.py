"""Several trainings after each other in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import AcceleratorState, GradientState


@contextmanager
def one_training() -> Iterator[None]:
    """Forget Accelerate's state after a training, so that the next one can have another precision or seed."""
    try:
        yield
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
