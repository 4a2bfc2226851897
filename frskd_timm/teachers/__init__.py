"""Self-teachers: `teacher(features) -> (refined_features, logits)`.

To add one, put a function or class into a file of this folder and decorate it with `@SELF_TEACHERS.register(name)`. It
is called as `builder(channels, num_classes, **options)`, with the options of `create_self_teacher`, of which
`FRSKDTask.create` always gives `depth` and `fits`, and returns a `SelfTeacher`; flags, help and tests find it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.registry import Registry


class SelfTeacher(nn.Module, ABC):
    """Network that refines a student's feature maps and classifies from them.

    It learns from its logits alone, since the feature loss does not train it, so every parameter must influence them:
    DDP stops at a parameter without a gradient.

    Attributes:
        channels: Channels of each refined map, fine to coarse.
        residual: Whether the logits are added to those of the student as a correction.
        beside_decoder: Whether it takes the maps that enter the decoder's layers of a segmentation student instead of
            those that leave them.
    """

    channels: list[int]
    residual = False
    beside_decoder = False

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Refine the maps.

        Args:
            features: Maps [B, C_i, H_i, W_i], fine to coarse, after their activation.

        Returns:
            Refined maps [B, channels[i], H_i, W_i], and logits [B, num_classes].
        """

    def output_norms(self) -> list[nn.BatchNorm2d]:
        """Return the last batch normalisation before each refined map, for losses that read its statistics.

        Raises:
            UserError: There is none.
        """
        raise UserError(f"{type(self).__name__} does not end in batch normalisations, which this feature loss reads.")


def checked_result(result: Any, maps: Sequence[Tensor], channels: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return refined maps and logits of a self-teacher that was given these maps.

    Raises:
        UserError: They are not what `SelfTeacher.forward` promises.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Tensor)):
        raise UserError("A self-teacher must return (refined_maps, logits).")
    refined, logits = result
    found = [tuple(map_.shape[1:]) for map_ in refined]
    wanted = [(c, *map_.shape[2:]) for c, map_ in zip(channels, maps, strict=True)]
    if found != wanted:
        raise UserError(
            f"The self-teacher returns maps of {found}; they must be {wanted} (channels, height, width), one for each "
            "map of the student."
        )
    return refined, logits


def check_outputs(logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise UserError unless student and self-teacher have as many outputs."""
    own, other = logits.shape[1], teacher_logits.shape[1]
    if own != other:
        raise UserError(
            f"The student has {own} outputs and the self-teacher {other}: create the task after changing the student's "
            "classifier."
        )


SELF_TEACHERS: Registry[SelfTeacher] = Registry("self-teacher", __name__)


def create_self_teacher(name: str, channels: Sequence[int], num_classes: int, **options: Any) -> SelfTeacher:
    """Create the self-teacher registered under `name`, such as 'bifpnc', by default with the paper's width and depth.

    Args:
        name: A registered name; the self-teachers of segmentation belong to its task and are not accepted.
        channels: Channels of the student's maps, fine to coarse.
        num_classes: Number of classes.
        **options: Further arguments of the self-teacher (width, depth, repeats, preactivation, fits); None for the
            paper's. `fits(teacher)` tells whether a self-teacher is small enough, for those that choose a width.

    Raises:
        UserError: The name is unknown, the self-teacher has no such argument, a number is out of range, or the
            registered builder does not return a self-teacher for these levels.
    """
    options = {key: value for key, value in options.items() if value is not None}
    for key in ("width", "depth", "repeats"):
        if options.get(key, 1) <= 0:
            raise UserError(f"The {key} of a self-teacher must be above 0, not {options[key]}.")
    builder = SELF_TEACHERS.get(name)
    try:
        teacher = builder(list(channels), num_classes, **options)
    except TypeError as error:
        raise UserError(f"The self-teacher '{name}' cannot be created: {error}.") from error
    if not isinstance(teacher, SelfTeacher):
        raise UserError(f"The self-teacher '{name}' must be a teachers.SelfTeacher, not {type(teacher).__name__}.")
    if len(getattr(teacher, "channels", ())) != len(channels):
        raise UserError(f"The self-teacher '{name}' must name the channels of its {len(channels)} maps in `channels`.")
    return teacher
