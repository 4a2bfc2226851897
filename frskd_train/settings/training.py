"""Settings of the optimizer, the training loop and the run folder."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from frskd_train.settings.constraints import (
    CLASSIFICATION,
    FIXED,
    FREE,
    PRIVATE,
    Count,
    KeywordArguments,
    NotNegative,
    Pattern,
    Positive,
    Range,
)

Name = Pattern(r"\w[\w.-]{0,63}", "1 to 64 letters, digits, '_', '-' or '.'")


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule, with timm's names."""

    opt: Annotated[str, FIXED] = "sgd"
    """timm optimizer: sgd (Nesterov), momentum, adamw, lamb, ... (timm.optim.list_optimizers())."""
    lr: Annotated[float, Positive] = 0.1
    """Peak learning rate."""
    lr_base: Annotated[float | None, Positive] = None
    """Used instead of --lr, and multiplied by images per update / --lr-base-size.
    With some optimizers by the square root of this (--lr-base-scale)."""
    lr_base_size: Annotated[int, Count] = 256
    """Images per update at which --lr-base is used unscaled."""
    lr_base_scale: Literal["auto", "linear", "sqrt"] = "auto"
    """Scale with the batch size or its square root. auto, as in timm: sqrt for Ada* and LAMB, else linear."""
    momentum: Annotated[float, Range(low=0, high=0.9999)] = 0.9
    """Momentum of SGD-like optimizers."""
    weight_decay: Annotated[float, NotNegative] = 5e-4
    """Weight decay."""
    filter_bias_and_bn: Annotated[bool, FIXED] = False
    """Exclude biases and normalisation layers from weight decay (the authors' code decays all parameters).
    Parameters that the model exempts, such as position embeddings, never decay."""
    layer_decay: Annotated[float | None, Range(above=0, high=1), FIXED, CLASSIFICATION] = None
    """Multiply the learning rate by this factor for every layer further from the student's output, for fine-tuning."""
    opt_kwargs: Annotated[KeywordArguments, FIXED] = field(default_factory=dict)
    """Additional arguments of the optimizer, such as --opt-kwargs eps=1e-6; the flag without values clears them.
    For hybrid optimizers such as Muon, also timm's fallback_list and fallback_no_weight_decay."""
    clip_grad: Annotated[float | None, Positive] = None
    """Gradient clipping threshold."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """How gradients are clipped."""
    sched: Literal["cosine", "multistep", "step", "poly", "tanh", "plateau", "constant", "none"] = "cosine"
    """timm scheduler, stepped at every update; constant keeps the learning rate after the warm-up, none has no warm-up.
    plateau: multiplied by --decay-rate when the score has not improved for --patience-epochs validations."""
    epochs: Annotated[int, Count] = 15
    """Passes over the training images."""
    warmup_epochs: Annotated[float, NotNegative] = 0.0
    """Epochs of linear warm-up from --warmup-lr."""
    warmup_lr: Annotated[float, NotNegative] = 1e-5
    """Learning rate at the first step of the warm-up."""
    min_lr: Annotated[float, NotNegative] = 0.0
    """Learning rate at the end of cosine, tanh and poly; lowest learning rate of plateau."""
    decay_milestones: Annotated[tuple[int, ...], Count] = ()
    """multistep: epochs after which the learning rate is multiplied by --decay-rate.
    timm's script does this one epoch earlier."""
    decay_epochs: Annotated[float, Positive] = 30.0
    """step: epochs between two decays."""
    decay_rate: Annotated[float | None, Positive] = None
    """step, multistep and plateau: factor of each decay, up to 1, by default 0.1. poly: power, by default 1."""
    patience_epochs: Annotated[int, NotNegative] = 10
    """plateau: validations without improvement before a decay."""

    @property
    def own_decay_rate(self) -> float:
        """The given decay rate or the scheduler's default."""
        return decay_rate(self.sched, self.decay_rate)

    @property
    def decays_too_late(self) -> str:
        """Why the first decay of step or multistep is after the end of the run; empty if it is not."""
        first = {"step": self.decay_epochs, "multistep": min(self.decay_milestones, default=0)}.get(self.sched, 0)
        name = "--decay-epochs" if self.sched == "step" else "--decay-milestones"
        return f"{name} {first:g} is not below --epochs {self.epochs}" if first >= self.epochs else ""


def decay_rate(sched: str, given: float | None) -> float:
    """Return the given decay rate or the scheduler's default."""
    return given or (1.0 if sched == "poly" else 0.1)


@dataclass(frozen=True)
class LoopSettings:
    """Batches, precision and averaging."""

    batch_size: Annotated[int, arg(aliases=["-b"]), Count, FREE] = 64
    """Images per batch of one process."""
    validation_batch_size: Annotated[int | None, arg(aliases=["-vb"]), Count, PRIVATE] = None
    """Images per validation batch; twice --batch-size by default."""
    grad_accum_steps: Annotated[int, Count, FIXED] = 1
    """Batches whose gradients are accumulated for one update."""
    amp: bool = True
    """Mixed precision on hardware that supports it natively; the losses are always computed in float32."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Data type of --amp. auto: bfloat16 on hardware that supports it, else float32."""
    channels_last: bool = True
    """NHWC memory format, which is faster for convolutions."""
    torchcompile: bool = False
    """Compile the training step with torch.compile."""
    sync_bn: bool = False
    """Synchronise batch normalisation across processes, also on CPU."""
    skip_nonfinite: Annotated[int, NotNegative] = 0
    """Maximum number of steps per epoch to skip because their loss is not finite; one more stops the run.
    Slightly slower."""
    model_ema: Annotated[bool, FIXED] = False
    """Keep an exponential moving average of the student's weights and export the average."""
    model_ema_decay: Annotated[float, Range(low=0, high=0.999999)] = 0.998
    """Decay of the average per update."""
    model_ema_warmup: bool = True
    """Increase the decay of the average gradually, so that the average of a short run forgets the initial weights."""
    seed: Annotated[int, Range(low=0, high=2**32 - 1), FIXED] = 42
    """Seed of all random numbers of a run."""
    threads: Annotated[int | None, Count, PRIVATE] = None
    """CPU threads per process; by default OMP_NUM_THREADS, or an even share of the cores.
    Under a launcher, an OMP_NUM_THREADS of 1 counts as not given, because launchers set it."""

    @property
    def images_per_validation_batch(self) -> int:
        """Images per validation batch of one process."""
        return self.validation_batch_size or 2 * self.batch_size


@dataclass(frozen=True)
class RunSettings:
    """The run folder, its checkpoints, and what happens to the student at the end."""

    config: Annotated[str | None, arg(aliases=["-c"]), PRIVATE] = None
    """Recipe: a YAML file with one setting per line, or the name of an included recipe; flags override it."""
    output_dir: Annotated[str | None, PRIVATE] = None
    """Folder of the run; runs/MODEL-DATASET-TIME by default. It must be new or empty, unless --resume is given."""
    resume: Annotated[str | None, arg(metavar="auto|RUN|CHECKPOINT"), PRIVATE] = None
    """Resume a run: its folder, one of its checkpoints, or `auto` for the run in --output-dir, if there is one."""
    checkpoint_hist: Annotated[int, Count, PRIVATE] = 2
    """Number of latest checkpoints to keep, in addition to the best one."""
    checkpoint_minutes: Annotated[float, Positive, PRIVATE] = 10.0
    """Longest time in minutes between two checkpoints; one is always written at the end of an epoch."""
    val_interval: Annotated[int, Count] = 1
    """Epochs between validations; the last epoch is always validated."""
    log_interval: Annotated[int, Count, PRIVATE] = 50
    """Updates between two progress lines, and between two entries in trackers."""
    tag: Annotated[str | None, Name] = None
    """Tag of the exported weights (ARCHITECTURE.TAG); the dataset's name by default."""
    license: str | None = None
    """Licence of the exported weights as spelled by the Hub (apache-2.0, mit, ...); the card states none by default."""
    baseline: Annotated[tuple[str, ...], PRIVATE] = ()
    """Folders of `--method ce` runs of the same recipe, one per seed, whose scores are shown in the card."""
    export: tuple[Literal["onnx"], ...] = ()
    """Additional export formats; onnx needs the extra `onnx`."""
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME"), PRIVATE] = None
    """Repository on the Hugging Face Hub to publish the student to at the end, as `frskd push` does."""
    hub_private: Annotated[bool, PRIVATE] = False
    """Create that repository as private; an existing public one is refused."""
    report_to: Annotated[tuple[str, ...], PRIVATE] = ()
    """Trackers: tensorboard, wandb, trackio, mlflow and others of Accelerate, each of which has to be installed."""
    project: Annotated[str, Name, PRIVATE] = "frskd_timm"
    """Project of the run in the trackers."""
    run_name: Annotated[str | None, Name, PRIVATE] = None
    """Name of the run in the trackers; the name of its folder by default."""
