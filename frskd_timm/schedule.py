"""How the weight of distillation goes over a run."""

import math
from collections.abc import Callable

from frskd_timm.errors import UserError


def constant(t: float) -> float:
    """1 from the first step to the last, as in the paper's classification experiments."""
    return 1.0


def ramp(t: float) -> float:
    """exp(-5 (1 - t)^2) for t in 0..1: from 0.007 to 1, as in the authors' segmentation code."""
    return math.exp(-5 * (1 - t) ** 2)


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "ramp": ramp}


def distillation_weight(name: str, progress: float, start: float = 0.0) -> float:
    """Factor of alpha and beta at a moment of the run.

    Args:
        name: A key of `SCHEDULES`.
        progress: Share of the run that is over, 0..1.
        start: Share of the run before distillation starts, 0..1; the schedule's t counts from there.

    Raises:
        UserError: Unknown name.
    """
    if name not in SCHEDULES:
        raise UserError(f"There is no distillation schedule '{name}'; there are: {', '.join(SCHEDULES)}.")
    if progress < start or start >= 1:
        return 0.0
    return SCHEDULES[name](min(1.0, (progress - start) / (1 - start)))
