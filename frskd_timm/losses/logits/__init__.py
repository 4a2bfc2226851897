"""Soft-label losses: `loss(teacher_logits, student_logits, target, temperature, weight) -> scalar`.

To add one, put a function into a file of this folder and decorate it with `@LOGIT_LOSSES.register(name)`. Its
arguments are the logits of both networks [N, K], of which only the student's get a gradient; classes [N] (255 for
none) or probabilities [N, K]; the temperature T; and the weight of each row in the mean, [N] or None. Flags, help and
tests find it through the registry.
"""

from torch import Tensor

from frskd_timm.registry import Registry

LOGIT_LOSSES: Registry[Tensor] = Registry("logit loss", __name__)
