"""Settings of the student and of its training method."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from frskd_train.settings.constraints import (
    CLASSIFICATION,
    FIXED,
    LOCAL,
    SEGMENTATION,
    Count,
    Fraction,
    KeywordArguments,
    NotNegative,
    OneOf,
    Positive,
    Range,
)
from frskd_train.settings.library import DEFAULT, registered

SELF_TEACHERS = {"classification": registered("teachers"), "segmentation": registered("segmentation")}
FEATURE_LOSSES = registered("losses")
LOGIT_LOSSES = registered("losses/logits")
GATES, SCHEDULES = ("none", *registered("gates")), registered("schedule")
_ANY_TEACHER = tuple(name for names in SELF_TEACHERS.values() for name in names)
SelfTeacher = Annotated[str, arg(metavar="|".join(_ANY_TEACHER)), OneOf(_ANY_TEACHER)]
FeatureLoss = Annotated[str, arg(metavar="|".join(FEATURE_LOSSES)), OneOf(FEATURE_LOSSES)]
LogitLoss = Annotated[str, arg(metavar="|".join(LOGIT_LOSSES)), OneOf(LOGIT_LOSSES)]
Gate = Annotated[str, arg(metavar="|".join(GATES)), OneOf(GATES)]
Schedule = Annotated[str, arg(metavar="|".join(SCHEDULES)), OneOf(SCHEDULES)]


@dataclass(frozen=True)
class ModelSettings:
    """The student: any timm model."""

    task: Annotated[Literal["classification", "segmentation"], FIXED] = "classification"
    """What the student predicts: one class per image, or one per pixel. Each task has its own defaults."""
    model: Annotated[str, FIXED, LOCAL] = "wide_resnet16_2_frskd"
    """Name of the student: any of timm.list_models(), or a `local-dir:` / `hf-hub:` name.
    For segmentation, the name of the backbone, or efficientdet_d0 / efficientdet_d1."""
    pretrained: Annotated[bool, FIXED] = False
    """Start from timm's pretrained weights for --model.
    The classifier is newly initialised only if the number of classes differs."""
    initial_checkpoint: Annotated[str | None, FIXED, LOCAL] = None
    """Weights file to start from (.safetensors or a timm checkpoint); a classifier of another size is skipped.
    In segmentation, the weights of a whole student with its decoder."""
    linear_probe: Annotated[bool, FIXED, CLASSIFICATION] = False
    """Train only the classifier and freeze the rest, including running statistics; needs --method ce."""
    num_classes: Annotated[int | None, Count, FIXED, CLASSIFICATION] = None
    """Number of outputs; defaults to the number of classes in the data, which is also the minimum."""
    drop: Annotated[float, Range(low=0, high=0.99), CLASSIFICATION] = 0.0
    """Dropout rate before the student's classifier."""
    drop_path: Annotated[float | None, Range(low=0, high=0.99)] = None
    """Stochastic depth rate, for students that support it."""
    model_kwargs: Annotated[KeywordArguments, FIXED] = field(default_factory=dict)
    """Additional arguments of timm.create_model, such as --model-kwargs patch_size=4.
    The flag without values clears them."""
    grad_checkpointing: bool = False
    """Recompute activations in the student's backward pass, which saves memory and costs time.
    Running statistics of batch normalisation are then updated twice per step, as in timm."""

    @property
    def has_weights(self) -> bool:
        """Whether the student starts from weights that `model` names: timm's, or those of an exported model."""
        return self.pretrained or self.model.startswith(("local-dir:", "hf-hub:"))


@dataclass(frozen=True)
class MethodSettings:
    """What is distilled, and how (FRSKD, arXiv 2103.08273)."""

    method: Annotated[Literal["frskd", "ce"], FIXED] = "frskd"
    """frskd: with the self-teacher. ce: the same student and recipe with cross-entropy only, the baseline."""
    alpha: Annotated[float, NotNegative] = DEFAULT.alpha
    """Weight of the soft-label loss KL(self-teacher, student)."""
    beta: Annotated[float | None, NotNegative] = DEFAULT.beta
    """Weight of the feature-map loss; 0 disables it.
    By default 100 for attention, 1 for fitnet, 1e-4 for overhaul.
    In segmentation half of these, 0 with --self-teacher pyramid, and no overhaul."""
    temperature: Annotated[float, Positive] = DEFAULT.temperature
    """Softmax temperature of the soft labels; the loss is multiplied by its square."""
    logit_loss: LogitLoss = DEFAULT.logit_loss
    """The soft-label loss. kl: as in the paper. standardised: z-scored logits. dkd: decoupled. dist: correlations."""
    gate: Gate = DEFAULT.gate
    """advantage: use soft labels only for images (or pixels) that the self-teacher predicts better than the student."""
    distill_schedule: Annotated[Schedule, FIXED] = DEFAULT.distill_schedule
    """constant: alpha and beta as given, as in the paper. The others multiply both by a factor.
    ramp: exp(-5 (1 - t)^2), with t from 0 to 1 over the run. warmup: a linear rise to 1 over the first tenth.
    lead: how far the self-teacher leads, a moving average of 1 - (its cross-entropy / the student's), from 0 to 1."""
    distill_start: Annotated[float, Range(low=0)] = 0.0
    """Epoch at which distillation starts; before it, alpha and beta are 0. The t of --distill-schedule starts there."""
    self_teacher: Annotated[SelfTeacher, FIXED] = DEFAULT.self_teacher
    """The self-teacher.
    For classification: bifpnc (default), with channels in proportion to the student's.
    bifpn: the same number of channels at every level.
    residual: a bifpnc with at most 256 channels, whose logits correct the student's.
    For segmentation: pyramid (default), a second head on the finest map that enters the decoder's BiFPN layers.
    sum: as in the paper, BiFPN layers on the decoder's maps.
    mixing: like sum, but mixes channels and classifies at twice the resolution."""
    teacher_width: Annotated[float | None, Positive, FIXED, CLASSIFICATION] = None
    """bifpnc, residual: multiple of each level's channels (2 in the paper).
    By default the largest of 1/8, ..., 1 that exceeds neither the student's parameters nor its multiply-adds, or 1/8.
    bifpn: number of channels (default 256)."""
    teacher_depth: Annotated[int, Count, FIXED, CLASSIFICATION] = DEFAULT.teacher_depth
    """Depthwise-pointwise blocks per fusion of the self-teacher (2 in the paper)."""
    teacher_repeats: Annotated[int, Count, FIXED] = DEFAULT.teacher_repeats
    """Consecutive BiFPN layers of the self-teacher; in segmentation after the decoder's, and not for pyramid."""
    student_weight: Annotated[float, Positive] = DEFAULT.student_weight
    """Weight of the student's cross-entropy in FRSKD (1 in the paper); ignored with --method ce."""
    teacher_weight: Annotated[float, Positive] = DEFAULT.teacher_weight
    """Weight of the self-teacher's cross-entropy (1 in the paper)."""
    teacher_gradient: Annotated[float, Fraction] = DEFAULT.teacher_gradient
    """Factor of the gradient from the self-teacher into the backbone; 0 detaches the feature maps."""
    teacher_ema: Annotated[float, Range(low=0, high=0.9999), FIXED] = DEFAULT.teacher_ema
    """Decay of a moving average of both networks that provides the soft labels and refined maps; 0 disables it."""
    teacher_interval: Annotated[int, Count, FIXED] = DEFAULT.teacher_interval
    """Run the self-teacher only in every Nth update; the others train the student on the labels alone.
    Printed losses are means over all updates, with 0 for what was not computed."""
    teacher_view: Annotated[Literal["same", "clean"], FIXED, CLASSIFICATION] = DEFAULT.teacher_view
    """What the self-teacher sees. clean: the images before --reprob, --mixup and --cutmix, in a second pass."""
    feature_loss: Annotated[FeatureLoss, FIXED] = DEFAULT.feature_loss
    """Distance between feature maps. attention: of attention maps, as in the paper.
    fitnet: of maps after a learned projection.
    overhaul: of maps before their activation, for classification with models whose stages end in an activation."""
    feature_levels: Annotated[int, Count, FIXED, CLASSIFICATION] = DEFAULT.feature_levels
    """Maximum number of levels of the student's pyramid: the coarsest ones.
    If all maps have the same size, they are spread evenly over the depth."""
    sla: Annotated[bool, FIXED, CLASSIFICATION] = False
    """Self-supervised label augmentation with four rotations per class, for both networks."""
    sla_weight: Annotated[float, NotNegative, CLASSIFICATION] = DEFAULT.sla_weight
    """Weight of the SLA terms in which each plain classifier learns from its SLA logits averaged over the rotations."""


@dataclass(frozen=True)
class SegmentationSettings:
    """Settings of --task segmentation only."""

    decoder_channels: Annotated[int | None, Count, FIXED, SEGMENTATION] = None
    """Channels of all levels of the decoder; 64 by default (efficientdet_d1: 88)."""
    decoder_layers: Annotated[int, Count, FIXED, SEGMENTATION] = 1
    """BiFPN layers of the decoder."""
    resize_range: Annotated[tuple[float, float], Positive, SEGMENTATION] = (0.75, 1.33)
    """Smallest and largest factor by which a training image is resized before it is cropped."""
