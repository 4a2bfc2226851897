"""Self-teachers: `teacher(features) -> (refined_features, logits)`.

A new one is a function or class in a file of this folder, decorated with `@SELF_TEACHERS.register(name)`. It is called
as `builder(channels, num_classes, **options)` and returns a `SelfTeacher`; flags, help and tests find it by its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from frskd_timm.registry import Registry


class SelfTeacher(nn.Module, ABC):
    """Refines a student's feature maps and classifies from them.

    Attributes:
        channels: Channels of each refined map, fine to coarse.
        residual: Whether the logits are a correction that is added to the student's.
    """

    channels: list[int]
    residual = False

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Refines the maps.

        Args:
            features: Maps [B, C_i, H_i, W_i], fine to coarse, after their activation.

        Returns:
            Refined maps [B, channels[i], H_i, W_i], and logits [B, num_classes].
        """

    def output_norms(self) -> list[nn.BatchNorm2d]:
        """The last batch normalisation before each refined map, for losses that read its statistics."""
        raise TypeError(f"{type(self).__name__} does not end in batch normalisations, which this feature loss reads.")


SELF_TEACHERS: Registry[SelfTeacher] = Registry("self-teacher", __name__)


def create_self_teacher(name: str, channels: Sequence[int], num_classes: int, **options: Any) -> SelfTeacher:
    """Builds the self-teacher called `name`.

    Args:
        name: A registered name, such as 'bifpnc'.
        channels: Channels of the student's maps, fine to coarse.
        num_classes: Number of classes.
        **options: The self-teacher's own arguments (width, depth, repeats, preactivation); None means its default.

    Raises:
        UserError: Unknown name.
    """
    options = {key: value for key, value in options.items() if value is not None}
    return SELF_TEACHERS.get(name)(list(channels), num_classes, **options)
