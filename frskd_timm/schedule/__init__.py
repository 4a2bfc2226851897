"""Schedules of the distillation weight over a run: functions of its progress t, 0..1.

To add one, put a function into a file of this folder and decorate it with `@SCHEDULES.register(name)`; flags and help
find it.
"""

import math

from frskd_timm.registry import Registry

SCHEDULES: Registry[float] = Registry("distillation schedule", __name__)


@SCHEDULES.register("constant")
def constant(t: float) -> float:
    """Full weight always, as in the paper's classification experiments."""
    return 1.0


@SCHEDULES.register("lead")
def lead(t: float) -> float:
    """Full weight, which the task multiplies by the measured lead of the self-teacher."""
    return 1.0


@SCHEDULES.register("ramp")
def ramp(t: float) -> float:
    """Rise from 0.007 to 1, as in the authors' segmentation code."""
    return math.exp(-5 * (1 - t) ** 2)


@SCHEDULES.register("warmup")
def warmup(t: float) -> float:
    """Rise linearly over the first tenth, so that most of the run has full weight."""
    return min(1.0, 10 * t)


def distillation_weight(name: str, progress: float, start: float = 0.0) -> float:
    """Return the factor of alpha and beta at a point of the run.

    Args:
        name: A name in `SCHEDULES`.
        progress: Completed fraction of the run, 0..1; other numbers are clipped.
        start: Fraction of the run before distillation starts, 0..1; the schedule's t counts from there.

    Raises:
        UserError: The name is unknown.
    """
    schedule = SCHEDULES.get(name)
    progress = min(max(progress, 0.0), 1.0)
    if progress < start or start >= 1:
        return 0.0
    return schedule((progress - start) / (1 - start))
