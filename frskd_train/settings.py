"""Every setting of a training run: typed, grouped, documented where it is declared.

A setting is at once a flag (`--batch-size 64`), a key of a recipe (`batch-size: 64`) and a line of a run's
`config.yaml`. Names follow timm's `train.py` where timm has one. This module imports neither torch nor timm, so that
`--help` and a wrong flag answer at once.
"""

import re
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from frskd_train.constraints import Count, Fraction, KeywordArguments, NotNegative, OneOf, Positive, Range


def registered(folder: str) -> tuple[str, ...]:
    """Names of the parts that the files of a folder of `frskd_timm` register; read as text, so that torch can wait."""
    spec = find_spec("frskd_timm")
    home = Path((spec.submodule_search_locations or [""])[0]) if spec is not None else Path()
    decorator = re.compile(r'^@\w+\.register\("(\w+)"\)', re.MULTILINE)
    names = {name for file in (home / folder).glob("*.py") for name in decorator.findall(file.read_text("utf-8"))}
    return tuple(sorted(names))


SELF_TEACHERS = registered("teachers")
FEATURE_LOSSES = registered("losses")

# Settings that had another name in an earlier version: old name -> name. Recipes and checkpoints are read by both.
RENAMED: dict[str, str] = {}


@dataclass(frozen=True)
class ModelSettings:
    """The student: any timm model."""

    task: Literal["classification", "segmentation"] = "classification"
    """What the student learns to tell: the class of an image, or of each of its pixels. Other defaults for each."""
    model: str = "wide_resnet16_2_frskd"
    """The student's name: any of timm.list_models(), or a `local-dir:` / `hf-hub:` name. In segmentation the
    backbone's, or efficientdet_d0 / efficientdet_d1."""
    pretrained: bool = False
    """Start from the weights timm knows for this name (the head is made anew for other classes)."""
    initial_checkpoint: str | None = None
    """Start from this file of weights (.safetensors or .pth); a head of another size is left out."""
    linear_probe: bool = False
    """Train the classifier alone on the frozen rest of the student, running statistics included; with --method ce."""
    num_classes: Annotated[int | None, Count] = None
    """Number of classes; by default what the data has. Only larger numbers are accepted."""
    drop: Annotated[float, Range(low=0, high=0.99)] = 0.0
    """Dropout rate before the student's classifier."""
    drop_path: Annotated[float | None, Range(low=0, high=0.99)] = None
    """Stochastic depth rate, for students that have it."""
    model_kwargs: KeywordArguments = field(default_factory=dict)
    """More arguments of timm.create_model, as --model-kwargs patch_size=4; without words, none."""
    grad_checkpointing: bool = False
    """Trade time for memory in the student's backward pass."""


@dataclass(frozen=True)
class MethodSettings:
    """What is learned from what (FRSKD, arXiv 2103.08273)."""

    method: Literal["frskd", "ce"] = "frskd"
    """frskd: with the self-teacher. ce: the same student and recipe with cross-entropy alone, the baseline."""
    alpha: Annotated[float, NotNegative] = 2.0
    """Weight of the soft-label loss KL(self-teacher, student)."""
    beta: Annotated[float | None, NotNegative] = None
    """Weight of the feature-map loss; 0 leaves it out. By default 100 for attention, 1 for fitnet, 1e-4 for overhaul;
    in segmentation half of that."""
    temperature: Annotated[float, Positive] = 4.0
    """Softmax temperature T of the soft labels; the loss is multiplied by T squared."""
    distill_schedule: Literal["constant", "ramp"] = "ramp"
    """How alpha and beta go over the run. constant: as in the paper. ramp: times exp(-5 (1 - t)^2), t from 0 to 1."""
    distill_start: Annotated[float, Range(low=0)] = 0.0
    """Epoch at which distillation starts; alpha and beta are 0 before it and t counts from it."""
    self_teacher: Annotated[str, arg(metavar="|".join(SELF_TEACHERS)), OneOf(SELF_TEACHERS)] = "bifpnc"
    """The self-teacher. bifpnc: channels follow the student's levels. bifpn: one width for all levels."""
    teacher_width: Annotated[int | None, Count] = None
    """bifpnc: multiple of each level's channels (default 2). bifpn: channels (default 256)."""
    teacher_depth: Annotated[int, Count] = 2
    """Depthwise-pointwise repetitions in each fusion block of the self-teacher."""
    teacher_repeats: Annotated[int, Count] = 1
    """BiFPN layers of the self-teacher, one after the other (in segmentation on top of the decoder's)."""
    teacher_lr_scale: Annotated[float, Positive] = 1.0
    """Learning rate of the self-teacher as a multiple of the student's."""
    teacher_detach: bool = False
    """Hand the self-teacher detached feature maps, so that its labels' loss does not train the student's backbone."""
    feature_loss: Annotated[str, arg(metavar="|".join(FEATURE_LOSSES)), OneOf(FEATURE_LOSSES)] = "attention"
    """The feature-map loss."""
    feature_levels: Annotated[int, Count] = 4
    """At most this many levels of the student's pyramid are used, the coarsest ones."""
    sla: bool = False
    """Self-supervised label augmentation: classes times four rotations, on both networks."""
    sla_weight: Annotated[float, NotNegative] = 1.0
    """Weight of the SLA terms that teach the plain classifiers from the aggregated ones."""


@dataclass(frozen=True)
class DataSettings:
    """Where the images come from."""

    dataset: str = "fashion_mnist_sample"
    """The sample that ships, a folder of class folders, one written by datasets' save_to_disk, or a Hub id. In
    segmentation fashion_mnist_scenes, composed on the spot, a folder like Pascal VOC's, or a dataset of masks."""
    dataset_config: str | None = None
    """Configuration name of a Hub dataset that has several."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    train_split: str | None = None
    """Split to train on; by default `train`, or all of a dataset with one split."""
    val_split: str | None = None
    """Split to validate on; by default validation, val, valid or test, the first that exists."""
    val_fraction: Annotated[float, Range(low=0, high=0.9)] = 0.1
    """Share of the training split held out, class by class, where there is no validation split."""
    input_key: str | None = None
    """Column of the images; by default the only image column."""
    target_key: str | None = None
    """Column of the labels; by default the only class column, or label, labels, class, fine_label, target. In
    segmentation that of the masks."""
    train_num_samples: Annotated[int | None, Count] = None
    """Train on this many images only, as many of each class as can be, always the same ones."""
    data_mode: Literal["auto", "memory", "stream"] = "auto"
    """memory: decode once, hold as uint8, augment in batches. stream: decode in workers. auto: memory if it fits."""
    memory_limit: Annotated[float, Positive] = 2.0
    """GiB of decoded images up to which `auto` keeps a dataset in memory."""
    workers: Annotated[int, NotNegative] = 2
    """Decoding processes a training process has when streaming."""
    bad_images: Literal["stop", "skip"] = "stop"
    """An image that cannot be read: stop and name it, or leave it out (a stream trains on the next one) and count."""


@dataclass(frozen=True)
class PreprocessingSettings:
    """Size, colours and augmentation of the images."""

    img_size: Annotated[int | None, Range(low=8, high=4096)] = None
    """Height and width in pixels; by default the data's own where all are alike and at most 64, else the model's. In
    segmentation those of the training crops, by default the data's own up to 512."""
    in_chans: Literal[1, 3] = 3
    """Channels of the student's input; gray images are repeated to 3."""
    mean: tuple[float, ...] | None = None
    """Mean a channel, of images in 0..1; measured on the training data by default (the model's own if --pretrained)."""
    std: tuple[float, ...] | None = None
    """Standard deviation a channel, likewise."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Resizing filter, in training and after."""
    crop_pct: Annotated[float, Range(above=0, high=1)] = 1.0
    """Share of the resized image's side that the validation's centre crop keeps."""
    train_crop_mode: Literal["auto", "pad", "rrc", "none"] = "auto"
    """pad: random crop of the padded image. rrc: random resized crop. auto: pad up to 64 pixels, else rrc."""
    crop_padding: Annotated[int | None, NotNegative] = None
    """Pixels of padding on each side for `pad`; an eighth of the size by default (4 at 32)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the area that rrc keeps, smallest and largest."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of rrc, smallest and largest."""
    hflip: Annotated[float, Fraction] = 0.5
    """Chance of a horizontal flip."""
    vflip: Annotated[float, Fraction] = 0.0
    """Chance of a vertical flip."""
    color_jitter: Annotated[float, NotNegative] = 0.0
    """Strength of random brightness, contrast and saturation; in classification it streams the data."""
    aa: str | None = None
    """timm's AutoAugment / RandAugment policy, such as rand-m9-mstd0.5; streams the data."""
    reprob: Annotated[float, Fraction] = 0.0
    """Chance of random erasing."""
    mixup: Annotated[float, NotNegative] = 0.0
    """Mixup alpha (the paper: 0.2); 0 is off."""
    cutmix: Annotated[float, NotNegative] = 0.0
    """CutMix alpha (the paper: 1.0); 0 is off. With both, each batch takes one of the two."""
    smoothing: Annotated[float, Range(low=0, high=0.99)] = 0.1
    """Label smoothing of the cross-entropy terms (the paper: 0)."""


@dataclass(frozen=True)
class SegmentationSettings:
    """What only --task segmentation has."""

    decoder_channels: Annotated[int | None, Count] = None
    """Channels of all levels of the decoder; 64 by default (efficientdet_d1: 88)."""
    decoder_layers: Annotated[int, Count] = 3
    """BiFPN layers of the decoder."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in the cross-entropy, in the order of the labels; all alike by default."""
    resize_range: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which a training image is resized before it is cropped."""


# What the other task has no use of: refused there, and left out of its recipes.
ONLY_CLASSIFICATION = (
    "initial_checkpoint", "linear_probe", "num_classes", "drop", "self_teacher", "teacher_width", "teacher_depth",
    "feature_levels", "sla", "sla_weight", "crop_pct", "train_crop_mode", "crop_padding", "scale", "ratio", "aa",
    "reprob", "mixup", "cutmix",
)  # fmt: skip
ONLY_SEGMENTATION = tuple(SegmentationSettings.__dataclass_fields__)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule, by timm's names."""

    opt: str = "sgd"
    """timm optimizer: sgd (Nesterov), momentum, adamw, lamb, ... (timm.optim.list_optimizers())."""
    lr: Annotated[float, Positive] = 0.1
    """Learning rate at its highest."""
    momentum: Annotated[float, Range(low=0, high=0.9999)] = 0.9
    """Momentum of SGD-like optimizers."""
    weight_decay: Annotated[float, NotNegative] = 5e-4
    """Weight decay."""
    filter_bias_and_bn: bool = False
    """Leave biases and normalisation out of the weight decay (the authors decay everything)."""
    layer_decay: Annotated[float | None, Range(above=0, high=1)] = None
    """Factor of the learning rate from one student layer to the one before it, for fine-tuning."""
    opt_kwargs: KeywordArguments = field(default_factory=dict)
    """More arguments of the optimizer, as --opt-kwargs eps=1e-6; without words, none."""
    clip_grad: Annotated[float | None, Positive] = None
    """Gradient clipping threshold."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """How gradients are clipped."""
    sched: Literal["cosine", "multistep", "step", "poly", "tanh", "none"] = "cosine"
    """timm scheduler, stepped at every update; none keeps the rate."""
    epochs: Annotated[int, Count] = 10
    """Passes over the training images."""
    warmup_epochs: Annotated[float, NotNegative] = 0.0
    """Epochs of linear warm-up from --warmup-lr."""
    warmup_lr: Annotated[float, NotNegative] = 1e-5
    """Learning rate at the first step of the warm-up."""
    min_lr: Annotated[float, NotNegative] = 0.0
    """Learning rate at the end of cosine, tanh and poly."""
    decay_milestones: tuple[int, ...] = ()
    """multistep: epochs at which the rate is multiplied by --decay-rate."""
    decay_epochs: Annotated[float, Positive] = 30
    """step: epochs between two decays."""
    decay_rate: Annotated[float, Range(above=0, high=1)] = 0.1
    """step and multistep: the factor."""


@dataclass(frozen=True)
class LoopSettings:
    """Batches, precision and what is kept."""

    batch_size: Annotated[int, arg(aliases=["-b"]), Count] = 64
    """Images in a batch of one process."""
    validation_batch_size: Annotated[int | None, Count] = None
    """Images in a validation batch; twice --batch-size by default."""
    grad_accum_steps: Annotated[int, Count] = 1
    """Batches whose gradients make one update."""
    amp: bool = True
    """Mixed precision where the hardware is made for it; the losses are in float32 anyway."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Precision of --amp. auto: bfloat16 where there is hardware for it, else none."""
    channels_last: bool = True
    """NHWC memory format, the faster one for convolutions."""
    torchcompile: bool = False
    """Compile the training step with torch.compile."""
    sync_bn: bool = False
    """Batch normalisation over all processes, on CPU too."""
    skip_nonfinite: Annotated[int, NotNegative] = 0
    """Steps an epoch that may be left out for a loss that is not finite; one more stops. Costs a little speed."""
    model_ema: bool = False
    """Keep an exponential moving average of the student and export that one."""
    model_ema_decay: Annotated[float, Range(low=0, high=0.999999)] = 0.998
    """Decay of the average, an update."""
    model_ema_warmup: bool = True
    """Let the decay grow at the start, so that short runs forget their random beginning."""
    seed: Annotated[int, Range(low=0, high=2**32 - 1)] = 42
    """Everything random in a run follows from it."""
    threads: Annotated[int | None, Count] = None
    """CPU threads of each process; the cores shared out evenly by default."""


@dataclass(frozen=True)
class RunSettings:
    """The run's folder, its checkpoints and what is made of the student at the end."""

    config: str | None = None
    """Recipe: a YAML file of settings, one a line; flags come on top of it."""
    output_dir: str | None = None
    """Folder of the run; runs/MODEL-DATASET-TIME by default. It must be new or empty, unless --resume."""
    resume: Annotated[str | None, arg(metavar="auto|RUN|CHECKPOINT")] = None
    """Go on with a run: its folder, one of its checkpoints, or `auto` for the one in --output-dir, if any."""
    checkpoint_hist: Annotated[int, Count] = 2
    """Latest checkpoints kept, beside the best one."""
    checkpoint_minutes: Annotated[float, Positive] = 10.0
    """Longest time between two checkpoints; there is one at the end of each epoch in any case."""
    val_interval: Annotated[int, Count] = 1
    """Epochs between validations; the last epoch always has one."""
    log_interval: Annotated[int, Count] = 50
    """Steps between two lines of progress where the output is not a terminal."""
    tag: str | None = None
    """Tag of the exported weights (ARCHITECTURE.TAG); the dataset's name by default."""
    license: str | None = None
    """Licence of the exported weights, as the Hub spells it (apache-2.0, mit, ...); without it the card states none."""
    baseline: tuple[str, ...] = ()
    """Folders of `--method ce` runs of the same recipe, one a seed, whose scores the card shows beside this run's."""
    export: tuple[Literal["onnx"], ...] = ()
    """Formats beside safetensors that the student is exported to; onnx needs `pip install 'frskd-timm[onnx]'`."""
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Repository on the Hugging Face Hub that the student goes to at the end, as hub/push.py does it."""
    hub_private: bool = False
    """Make that repository private."""
    report_to: str | None = None
    """Tracker that Accelerate feeds: tensorboard, wandb, mlflow, ... (install it yourself)."""


@dataclass(frozen=True)
class Settings:
    """All settings of one run, group by group."""

    model: ModelSettings = field(default_factory=ModelSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    data: DataSettings = field(default_factory=DataSettings)
    preprocessing: PreprocessingSettings = field(default_factory=PreprocessingSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    run: RunSettings = field(default_factory=RunSettings)


def default_settings(task: str = "classification") -> Settings:
    """What a run of `--task` takes where nothing is said: the data that ship, on a CPU, in a few minutes."""
    if task != "segmentation":
        return Settings()
    return Settings(
        model=ModelSettings(task="segmentation", model="resnet10t"),
        method=MethodSettings(alpha=1.0, temperature=1.0),
        data=DataSettings(dataset="fashion_mnist_scenes"),
        preprocessing=PreprocessingSettings(smoothing=0.0),
        segmentation=SegmentationSettings(decoder_layers=1, resize_range=(0.75, 1.33)),
        optimizer=OptimizerSettings(opt="adamw", lr=5e-3, weight_decay=0.05, epochs=20, warmup_epochs=0.5),
        loop=LoopSettings(batch_size=16),
    )


@dataclass(frozen=True)
class FitSettings:
    """How images are fitted to the network; as the model's own configuration says where nothing is said."""

    img_size: Annotated[int | None, Range(low=8, high=4096)] = None
    """Height and width of the network's input."""
    crop_pct: Annotated[float | None, Range(above=0, high=1)] = None
    """Share of the resized image's side that the centre crop keeps."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """center: the shorter side is resized. squash: both are. border: the longer one is, the rest filled."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resizing filter."""

    def given(self) -> dict[str, Any]:
        """What was said, by timm's names."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EvaluationSettings:
    """What `validate.py` measures."""

    model: Annotated[str, arg(aliases=["-m"])]
    """A run's folder, an exported student's, or any timm name with weights (`hf-hub:OWNER/NAME` too)."""
    data: DataSettings = field(default_factory=DataSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    batch_size: Annotated[int, arg(aliases=["-b"]), Count] = 256
    """Images in a batch."""
    amp: bool = False
    """Mixed precision where the hardware is made for it."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Precision of --amp."""
    threads: Annotated[int | None, Count] = None
    """CPU threads; all cores by default."""
    output: str | None = None
    """JSON file for the scores; evaluation-DATASET.json beside a local model by default, else none."""
