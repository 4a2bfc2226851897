"""Base classes of the training tasks: `task(input, target) -> {'loss', 'output', one entry per loss term}`.

Everything trainable is in one `step`, so that DDP, autocast and compile see one module. The terms are already weighted
and 'loss' is their sum, so the training loop does not need to know the method.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from timm.models import group_parameters
from timm.task import TrainingTask
from timm.utils import ModelEmaV3, unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frskd_timm.defaults import CLASSIFICATION as DEFAULT
from frskd_timm.errors import UserError
from frskd_timm.losses.labels import LabelLoss, trust

Terms = dict[str, Tensor]


class StudentTask(TrainingTask):
    """A training task around a student, with the interface of timm's `TrainingTask`.

    The model that is evaluated, averaged and saved is the student alone. All other state, such as the self-teacher, is
    the task state of a checkpoint. As in timm, call in this order: move to the device, create the optimizer,
    `setup_ema`, `compile`, `prepare_distributed`.

    Args:
        student: The network that is kept after training: any timm model. The task is created on its device.
        smoothing: Label smoothing of the cross-entropy terms, from 0 to below 1. Use 0 if the targets are already
            smoothed probabilities, as with timm's Mixup by default.

    Attributes:
        student_weight: Weight of the student's cross-entropy in the loss.
        clean_view: Whether the task takes batches as `augment.TwoViews`.
        label_loss: The loss of logits and labels, `losses.labels.LabelLoss` with the smoothing by default. With
            `noisy_labels`, another one has to take a `factor` of the losses, of the shape of the classes.
        noisy_labels: Multiply the cross-entropy of each image (or pixel) by a factor that changes linearly from 1 to
            the trust in its label (`losses.labels.trust`) during the first half of the run. If `set_progress` is never
            called, the factor always equals the trust. False by default.

    Raises:
        UserError: `smoothing` is out of range, or the student has no classifier.
    """

    student_weight = 1.0
    clean_view = False
    doubt: Tensor

    def __init__(self, student: nn.Module, smoothing: float = DEFAULT.smoothing) -> None:
        if not 0 <= smoothing < 1:
            raise UserError(f"smoothing must be from 0 to below 1, not {smoothing:g}.")
        if getattr(student, "num_classes", None) == 0:
            raise UserError(f"{type(student).__name__} has no classifier: create it with num_classes.")
        parameter = next(student.parameters(), torch.empty(0))
        super().__init__(parameter.device, parameter.dtype, verbose=False)
        self.student = student
        self.smoothing = smoothing
        self.label_loss: nn.Module = LabelLoss(getattr(student, "num_classes", 0), smoothing)
        self.noisy_labels = False
        # A tensor, so that a change does not recompile a compiled step. Not saved: it follows from the progress.
        self.register_buffer("doubt", torch.ones((), device=self.device), persistent=False)
        # In tuples, because children would be part of the task's parameters and state dict.
        self._wrapped: tuple[nn.Module, ...] = ()
        self._ema: tuple[ModelEmaV3, ...] = ()

    @abstractmethod
    def step(self, input: Tensor, target: Tensor) -> Terms:
        """Compute the loss of one training step, as `forward` returns it."""

    def forward(self, input: Tensor, target: Tensor) -> Terms:
        """Run `step`, through the compiled or distributed module if there is one; classes may be any integers.

        Raises:
            UserError: The batch is empty, so there is no mean over it.
        """
        if not len(target):
            raise UserError("The batch has no images: leave out empty batches.")
        target = target.float() if target.is_floating_point() else target.long()
        return self._wrapped[0](input, target) if self._wrapped else self.step(input, target)

    def cross_entropy(self, logits: Tensor, target: Tensor, factor: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of logits [B, K] and classes [B] or probabilities [B, K].

        In segmentation, logits are [B, K, H, W] and classes [B, H, W]. Images of the class -100 and pixels of the
        class 255 do not count; the loss is 0 if nothing counts. A factor of the shape of the classes multiplies the
        cross-entropy before the mean.
        """
        return self.label_loss(logits.float(), target, **({} if factor is None else {"factor": factor}))

    def label_factor(self, logits: Sequence[Tensor], target: Tensor) -> Tensor | None:
        """Return the factors of the cross-entropy for the logits of all networks; None without `noisy_labels`."""
        return 1 - self.doubt * (1 - trust(logits, target)) if self.noisy_labels else None

    def set_progress(self, progress: float) -> None:
        """Tell the task, before each step, which fraction of the run is over (0..1).

        With gradient accumulation, all batches of one update have the same fraction. Other numbers are clipped.

        Raises:
            UserError: The fraction is not a number.
        """
        if math.isnan(progress):
            raise UserError("set_progress takes the completed fraction of the run, 0 to 1, not NaN.")
        if not -1e-6 <= progress <= 1 + 1e-6:
            warnings.warn(
                f"set_progress takes the completed fraction of the run, 0 to 1, not {progress}.", stacklevel=2
            )
        with torch.no_grad():
            self._follow(progress)

    def _follow(self, progress: float) -> None:
        """Adapt to the completed fraction of the run."""
        self.doubt.fill_(min(max(2 * progress, 0.0), 1.0))

    def predict(self, images: Tensor, average: nn.Module | None = None) -> dict[str, Tensor]:
        """Return the logits of each network of the task by name; 'student' is always present.

        With an average of the student, 'student' are its logits.
        """
        return {"student": (self.student if average is None else average)(images)}

    # timm's interface

    def get_trainable_module(self, ema: bool = False) -> nn.Module | None:
        """Return the task, or its compiled or distributed module; with `ema` the average of the student, or None."""
        if ema:
            return self._ema[0] if self._ema else None
        return self._wrapped[0] if self._wrapped else self

    @overload
    def get_eval_model(self, module: nn.Module | None = None, ema: Literal[False] = False) -> nn.Module: ...
    @overload
    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None: ...
    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the student, or with `ema` its average; None if there is no average."""
        if module is None:
            module = self.get_trainable_module(ema=ema)
        inner = None if module is None else unwrap_model(module)
        return getattr(inner, "student", inner)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the state of everything but the student; an average has none."""
        state = {} if ema else self.state_dict()
        return {key: value for key, value in state.items() if not key.startswith("student.")}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Load the result of `get_task_state`; without one, as in a checkpoint of another task, change nothing."""
        if state and not ema:
            student = {f"student.{key}": value for key, value in self.student.state_dict().items()}
            self.load_state_dict(student | state, strict=strict)

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters whose gradients are clipped; `exclude_head` leaves out the student's last two."""
        head = {id(parameter) for parameter in list(self.student.parameters())[-2:]} if exclude_head else set()
        return [p for p in self.parameters() if p.requires_grad and id(p) not in head]

    def setup_ema(
        self, decay: float = 0.9999, use_warmup: bool = False, device: torch.device | None = None, **options: Any
    ) -> ModelEmaV3:
        """Create an average of the student (`timm.utils.ModelEmaV3`), which `update_ema` updates after each step."""
        self._ema = (ModelEmaV3(self.student, decay=decay, use_warmup=use_warmup, device=device, **options),)
        return self._ema[0]

    def update_ema(self, step: int | None = None) -> None:
        """Update the average of the student, if there is one."""
        for average in self._ema:
            average.update(self.student, step=step)

    def compile(  # type: ignore[override]
        self, backend: str = "inductor", mode: str | None = None, **options: Any
    ) -> nn.Module:
        """Compile the step and the student in place, without wrappers and their prefixes; return the student.

        Raises:
            UserError: `prepare_distributed` was called before; it has to come last.
        """
        self._refuse_distributed()
        self._wrapped = (_Step(self),)
        for module in (*self._wrapped, self.student):
            module.compile(backend=backend, mode=mode, **options)
        return self.student

    def compile_ema(self, backend: str = "inductor", mode: str | None = None, **options: Any) -> nn.Module | None:
        """Compile the average of the student in place, and return it, if there is one."""
        model = self.get_eval_model(ema=True)
        if model is not None:
            model.compile(backend=backend, mode=mode, **options)
        return model

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> "StudentTask":
        """Let DDP average the gradients of all processes; call it once, after `compile`.

        Raises:
            UserError: It was called before.
        """
        self._refuse_distributed()
        module = self._wrapped[0] if self._wrapped else _Step(self)
        self._wrapped = (DistributedDataParallel(module, device_ids=device_ids, **ddp_kwargs),)
        return self

    def _refuse_distributed(self) -> None:
        if self._wrapped and isinstance(self._wrapped[0], DistributedDataParallel):
            raise UserError("The task is distributed already: call compile first, then prepare_distributed once.")

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the student exempts from weight decay, for `timm.optim.create_optimizer_v2`."""
        return {f"student.{name}" for name in getattr(self.student, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the layer of each parameter for timm's layer decay; all outside the student are in the last one.

        Raises:
            UserError: The student has no `group_matcher`, as in segmentation.
        """
        if not hasattr(self.student, "group_matcher"):
            raise UserError(f"{type(self.student).__name__} has no group_matcher, so layer decay is not possible.")
        matcher = self.student.group_matcher(coarse=coarse)  # type: ignore[operator]
        layers = group_parameters(self.student, matcher, reverse=True)
        return lambda name: layers.get(name.removeprefix("student."), max(layers.values()))


class _Step(nn.Module):
    """The step of a task as the forward of a module that the task does not contain."""

    def __init__(self, task: StudentTask) -> None:
        super().__init__()
        self.module = task  # the name with which `unwrap_model` finds the task

    def forward(self, input: Tensor, target: Tensor) -> Terms:
        return self.module.step(input, target)


class CrossEntropyTask(StudentTask):
    """The baseline: the student alone."""

    def step(self, input: Tensor, target: Tensor) -> Terms:
        logits = self.student(input)
        with torch.autocast(input.device.type, enabled=False):
            loss = self.cross_entropy(logits, target, self.label_factor([logits], target))
        # A clone, because the caller may scale the loss in place.
        return {"loss": loss, "output": logits, "loss_ce": loss.detach().clone()}


class LinearProbeTask(CrossEntropyTask):
    """Cross-entropy for the classifier only; the rest is frozen, including running statistics of normalisation layers.

    Raises UserError if the student's classifier has no weights.
    """

    def __init__(self, student: nn.Module, smoothing: float = DEFAULT.smoothing) -> None:
        super().__init__(student, smoothing)
        found = student.get_classifier() if hasattr(student, "get_classifier") else ()  # type: ignore[operator]
        # Not a child, because the classifier is in the student, and checkpoints keep the keys of a full training.
        self._classifiers = tuple(found) if isinstance(found, tuple | list) else (found,)
        student.requires_grad_(False)
        for classifier in self._classifiers:
            classifier.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise UserError(f"A linear probe needs a student with a classifier; {type(student).__name__} has none.")
        self.train(self.training)

    def train(self, mode: bool = True) -> "LinearProbeTask":
        """Set the mode of the classifier; all other layers stay in evaluation mode."""
        super().train(mode)
        self.student.eval()
        for classifier in self._classifiers:
            classifier.train(mode)
        return self
