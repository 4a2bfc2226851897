"""Schedules of the distillation weight over a run."""

import math
from collections.abc import Callable

from frskd_timm.errors import UserError

SCHEDULES: dict[str, Callable[[float], float]] = {  # functions of the progress t, 0..1
    "constant": lambda t: 1.0,  # as in the paper's classification experiments
    "lead": lambda t: 1.0,  # the task multiplies it by the measured lead of the self-teacher
    "ramp": lambda t: math.exp(-5 * (1 - t) ** 2),  # from 0.007 to 1, as in the authors' segmentation code
    "warmup": lambda t: min(1.0, 10 * t),  # a linear rise over the first tenth, so that most of the run has full weight
}


def distillation_weight(name: str, progress: float, start: float = 0.0) -> float:
    """Return the factor of alpha and beta at a point of the run.

    Args:
        name: A key of `SCHEDULES`.
        progress: Completed fraction of the run, 0..1.
        start: Fraction of the run before distillation starts, 0..1; the schedule's t counts from there.

    Raises:
        UserError: The name is unknown.
    """
    if name not in SCHEDULES:
        raise UserError(f"Unknown distillation schedule '{name}'; choose from {', '.join(SCHEDULES)}.")
    if progress < start or start >= 1:
        return 0.0
    return SCHEDULES[name](min(1.0, (progress - start) / (1 - start)))
