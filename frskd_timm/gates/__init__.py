"""Gates: which soft labels count, `gate(own, other) -> weights`; without one (`none`), all do, as in the paper.

To add one, put a function into a file of this folder and decorate it with `@GATES.register(name)`; flags and help find
it. Its arguments are the cross-entropies of the student and of the self-teacher for each image [B] or pixel [B, H, W];
it returns weights of that shape for the soft-label loss, a weighted mean. The weights get no gradient.
"""

from torch import Tensor

from frskd_timm.registry import Registry

GATES: Registry[Tensor] = Registry("gate", __name__)


@GATES.register("advantage")
def advantage(own: Tensor, other: Tensor) -> Tensor:
    """Use a soft label only where the self-teacher's cross-entropy is lower than the student's."""
    return (other < own).float()
