"""The BiFPN self-teachers of FRSKD (section 3.1): `bifpnc` with channels per level, `bifpn` with one width."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frskd_timm.errors import UserError
from frskd_timm.layers import global_average
from frskd_timm.teachers import SELF_TEACHERS, SelfTeacher
from frskd_timm.teachers.blocks import Fuse, Lateral, Same, add_upsampled, downsample


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass over n maps, fine to coarse.

    Neighbouring levels are connected by lateral blocks, unless all outgoing maps have equal channels.
    """

    def __init__(self, in_channels: Sequence[int], channels: Sequence[int], depth: int) -> None:
        super().__init__()
        n = len(channels)
        change = len(set(channels)) > 1
        self.lateral = nn.ModuleList(map(Lateral, in_channels, channels))
        # Lists that start at the second level are indexed by level - 1.
        self.lateral2 = nn.ModuleList(map(Lateral, in_channels[1:], channels[1:]))
        self.top_down = nn.ModuleList(Fuse(2, c, depth) for c in channels[:-1])
        self.bottom_up = nn.ModuleList(Fuse(3 if i < n - 1 else 2, channels[i], depth) for i in range(1, n))
        self.to_finer = nn.ModuleList(Lateral(channels[i + 1], channels[i]) if change else Same() for i in range(n - 1))
        self.to_coarser = nn.ModuleList(Lateral(c, d) if change else Same() for c, d in pairwise(channels))

    def forward(self, features: Sequence[Tensor], preactivation: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Return the refined maps, with `preactivation` before their ReLU, and the refined maps after it."""
        n = len(features)
        sizes = [(f.shape[-2], f.shape[-1]) for f in features]
        rectify = F.relu if preactivation else F.relu_

        # Top-down: P_n, ..., P_1. The 1x1 lateral block runs before the nearest-neighbour upsampling, not after it as
        # in the authors' code: repeating all pixels equally often changes neither a pointwise convolution nor the mean
        # and (biased) variance of a batch, and a quarter of the pixels takes a quarter of the work.
        out = coarser = self.lateral[-1](features[-1])
        rectified: list[Tensor] = [coarser] * n  # relu(P_i)
        for i in range(n - 2, -1, -1):
            fuse = cast(Fuse, self.top_down[i])
            weight, coarser_weight = fuse.fusion_weights().unbind()
            lateral = self.lateral[i](features[i], weight)
            out = fuse(add_upsampled(lateral, self.to_finer[i](coarser, coarser_weight)))
            coarser = rectified[i] = rectify(out)

        # Bottom-up: T_1 = P_1, T_2, ..., T_n; the coarsest level has no P term.
        refined, finer = [out], rectified[0]
        for i in range(1, n):
            fuse = cast(Fuse, self.bottom_up[i - 1])
            weight, *own_weight, finer_weight = fuse.fusion_weights().unbind()
            down = self.to_coarser[i - 1](downsample(finer, sizes[i]), finer_weight)
            total = self.lateral2[i - 1](features[i], weight) + down
            if own_weight:
                total.addcmul_(rectified[i], own_weight[0].to(total.dtype))
            refined.append(fuse(total))
            finer = rectified[i] = rectify(refined[-1])
        return refined, rectified


class BiFPN(SelfTeacher):
    """BiFPN layers on the student's maps, fine to coarse, and a linear classifier on the coarsest refined map.

    Args:
        in_channels, channels: Channels of the student's maps, at least two, and of the refined ones.
        num_classes: Number of classes.
        depth: Depthwise-pointwise repetitions in each fusion block; by default those of the paper.
        repeats: Number of BiFPN layers, each on the rectified output of the previous one.
        preactivation: Return the refined maps before their ReLU, as required by the `overhaul` loss.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        depth: int = 2,
        repeats: int = 1,
        preactivation: bool = False,
    ) -> None:
        super().__init__()
        self.channels = list(channels)
        self.preactivation = preactivation
        self.layers = nn.ModuleList(
            BiFPNLayer(in_channels if i == 0 else channels, channels, depth) for i in range(repeats)
        )
        self.fc = nn.Linear(self.channels[-1], num_classes)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        maps = list(features)
        for layer in self.layers[:-1]:
            maps = layer(maps)[1]
        refined, rectified = self.layers[-1](maps, self.preactivation)
        logits = self.fc(global_average(rectified[-1]))
        return refined, logits

    def output_norms(self) -> list[nn.BatchNorm2d]:
        layer = cast(BiFPNLayer, self.layers[-1])
        return [cast(nn.BatchNorm2d, cast(Fuse, fuse).blocks[-1]) for fuse in (layer.top_down[0], *layer.bottom_up)]


def widen(channels: Sequence[int], width: float, cap: int | None = None) -> list[int]:
    """Return `width` times the channels of each level, in multiples of 8 for a fraction, and at most `cap`."""
    exact = [width * c for c in channels]
    widened = [int(c) if float(width).is_integer() else max(8, 8 * round(c / 8)) for c in exact]
    return [min(c, cap) if cap else c for c in widened]


@SELF_TEACHERS.register("bifpnc")
def bifpnc(
    channels: Sequence[int],
    num_classes: int,
    *,
    width: float | None = None,
    fits: Callable[[nn.Module], bool] | None = None,
    cap: int | None = None,
    **options: Any,
) -> BiFPN:
    """Create the default: level i has width * c_i channels, and lateral blocks convert them between levels.

    The default width is the paper's, 2. With `fits`, it is the largest multiple of an eighth up to 1 for which `fits`
    accepts the self-teacher, which is on the meta device; `FRSKDTask.create` compares its cost with the student's.
    """
    if width is None and fits is not None:
        for eighths in range(8, 0, -1):
            width = eighths / 8
            with torch.device("meta"):
                teacher = BiFPN(channels, widen(channels, width, cap), num_classes, **options)
            if fits(teacher):
                break
    return BiFPN(channels, widen(channels, width or 2, cap), num_classes, **options)


@SELF_TEACHERS.register("bifpn")
def bifpn(
    channels: Sequence[int],
    num_classes: int,
    *,
    width: float = 256,
    fits: Callable[[nn.Module], bool] | None = None,
    **options: Any,
) -> BiFPN:
    """Create a BiFPN with `width` channels at every level, whatever `fits` says.

    Raises:
        UserError: `width` is not an integer.
    """
    if not float(width).is_integer():
        raise UserError(f"The width of a bifpn is its number of channels, an integer, not {width}.")
    return BiFPN(channels, [int(width)] * len(channels), num_classes, **options)


@SELF_TEACHERS.register("residual")
def residual(channels: Sequence[int], num_classes: int, **options: Any) -> BiFPN:
    """Create bifpnc with at most 256 channels, whose logits correct the student's from 0 on (not in the paper)."""
    teacher: Any = bifpnc(channels, num_classes, cap=256, **options)
    teacher.residual = True
    nn.init.zeros_(teacher.fc.weight)
    nn.init.zeros_(teacher.fc.bias)
    return teacher
