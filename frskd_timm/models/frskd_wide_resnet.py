"""Wide ResNet (arXiv 1605.07146) as trained by the authors of FRSKD at 32x32."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.models._pretrained import apart_from_shipped, with_weights
from frskd_timm.models._stock import CIFAR


class WideBlock(nn.Module):
    """relu - conv3x3 - BN - relu - conv3x3 beside a shortcut; no BN before the first convolution.

    The shortcut is the input itself, or a 1x1 convolution of the activated input if the shapes differ. The input of a
    block with a stride is activated already.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_path: float, **dd: Any) -> None:
        super().__init__()
        # Not in place: the input may be a returned feature map, and the identity shortcut needs it too.
        self.act1 = nn.ReLU() if stride == 1 else nn.Identity()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_chs, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False, **dd)
        differs = stride != 1 or in_chs != out_chs
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False, **dd) if differs else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act1(x)
        branch = self.conv2(self.act2(self.norm(self.conv1(activated))))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.drop_path(branch)


def _group(in_chs: int, out_chs: int, stride: int, drop_path_rates: list[float], **dd: Any) -> nn.Sequential:
    first, *others = drop_path_rates
    blocks = (WideBlock(out_chs, out_chs, 1, rate, **dd) for rate in others)
    return nn.Sequential(WideBlock(in_chs, out_chs, stride, first, **dd), *blocks)


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks at strides 1, 2, 4, each followed by BN and ReLU.

    The outputs of these ReLUs are the feature maps. They are also the inputs of the next group and of the head, so that
    `forward_head(forward_intermediates(x)[0])` is `forward(x)`.

    Args:
        depth: Convolutions on the longest path, 6n + 4 for n blocks per group.
        widen_factor: Factor of the groups' 16, 32 and 64 channels.
        num_classes: Number of classes; with 0, `forward` returns the pooled features.
        in_chans, global_pool, drop_rate: As in timm's networks; there is no `output_stride` or choice of layers.
        drop_path_rate: Stochastic depth rate of the last block; it rises linearly over the blocks.
        device, dtype: Those of the parameters.

    Raises:
        UserError: The depth is not of the form 6n + 4.
    """

    def __init__(
        self,
        depth: int = 16,
        widen_factor: int = 2,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"A wide ResNet has a depth of 10, 16, 22, 28 or another 6n + 4, not {depth}.")
        blocks = (depth - 4) // 6
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        rates = torch.linspace(0, drop_path_rate, 3 * blocks, device="cpu").tolist()
        chs1, chs2, chs3 = (chs * widen_factor for chs in (16, 32, 64))
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False, **dd)
        self.layer1 = _group(16, chs1, 1, rates[:blocks], **dd)
        # The activations are not in place, because some losses compare BN's output, the map before its activation.
        self.norm1, self.act1 = nn.BatchNorm2d(chs1, **dd), nn.ReLU()
        self.layer2 = _group(chs1, chs2, 2, rates[blocks:-blocks], **dd)
        self.norm2, self.act2 = nn.BatchNorm2d(chs2, **dd), nn.ReLU()
        self.layer3 = _group(chs2, chs3, 2, rates[-blocks:], **dd)
        self.norm3, self.act3 = nn.BatchNorm2d(chs3, **dd), nn.ReLU()
        self.feature_info = [
            {"num_chs": chs, "reduction": 2**i, "module": f"act{i + 1}"} for i, chs in enumerate((chs1, chs2, chs3))
        ]
        self.num_features = chs3
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that assign parameters to depths; `coarse` gives one depth per group, not per block."""
        if coarse:
            return {"stem": r"^conv1", "blocks": r"^(?:layer|norm)(\d+)"}
        return {"stem": r"^conv1", "blocks": [(r"^layer(\d+)\.(\d+)", None), (r"^norm(\d+)", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable the recomputation of blocks in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the last linear layer (an identity if there are no classes), or only its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes for none) and, unless `global_pool` is None, the pooling."""
        if global_pool is None:
            global_pool = self.global_pool.pool_type  # type: ignore[has-type]
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        for module in (self.global_pool, self.fc):
            module.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last computed map and the groups' maps, like every timm model; `norm` has no effect."""
        assert output_fmt == "NCHW", "Output format must be NCHW."
        take_indices, max_index = feature_take_indices(3, indices)
        intermediates = []
        x = self.conv1(x)
        for index in range(max_index + 1 if stop_early else 3):
            layer = getattr(self, f"layer{index + 1}")
            x = checkpoint_seq(layer, x) if self.grad_checkpointing else layer(x)
            x = getattr(self, f"act{index + 1}")(getattr(self, f"norm{index + 1}")(x))
            if index in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the groups that these maps do not need, with the last one also the classifier; return the indices."""
        take_indices, max_index = feature_take_indices(3, indices)
        for group in range(max_index + 2, 4):
            setattr(self, f"layer{group}", nn.Sequential())
            setattr(self, f"norm{group}", nn.Identity())
            setattr(self, f"act{group}", nn.Identity())
        self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head or max_index < 2:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last group's map, [batch, 64 * widen_factor, height / 4, width / 4]."""
        x = self.conv1(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self.act1(self.norm1(checkpoint_seq(self.layer1, x)))
            x = self.act2(self.norm2(checkpoint_seq(self.layer2, x)))
            return self.act3(self.norm3(checkpoint_seq(self.layer3, x)))
        x = self.act1(self.norm1(self.layer1(x)))
        x = self.act2(self.norm2(self.layer2(x)))
        return self.act3(self.norm3(self.layer3(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the last map, apply dropout, and classify unless `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [batch, num_classes]."""
        return self.forward_head(self.forward_features(x))


_CFG = {**CIFAR, "num_classes": 1000, "pool_size": (8, 8), "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(with_weights({"wide_resnet16_2_frskd": _CFG}))


@register_model
def wide_resnet16_2_frskd(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Create WRN-16-2, the paper's small student on CIFAR-100 and TinyImageNet."""
    model_args = {"feature_cfg": {"out_indices": (0, 1, 2)}, **apart_from_shipped(pretrained, kwargs)}
    return build_model_with_cfg(WideResNet, "wide_resnet16_2_frskd", pretrained, **model_args)
