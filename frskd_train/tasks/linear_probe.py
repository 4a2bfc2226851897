"""Linear probe: a new classifier trained on the frozen features of the student."""

from torch import nn

from frskd_timm.errors import UserError
from frskd_timm.task import CrossEntropyTask


class LinearProbeTask(CrossEntropyTask):
    """Cross-entropy for the classifier only; the rest is frozen, including running statistics of normalisation layers.

    Args:
        student: Any timm classifier. All parameters outside its classifier are frozen.
        smoothing: Label smoothing, 0..1.

    Raises:
        UserError: The student has no classifier with weights.
    """

    def __init__(self, student: nn.Module, smoothing: float) -> None:
        super().__init__(student, smoothing)
        found = student.get_classifier()  # type: ignore[operator]
        # Not a child, because the classifier is in the student, and checkpoints keep the keys of a full training.
        self._classifiers = tuple(found) if isinstance(found, tuple | list) else (found,)
        student.requires_grad_(False)
        for classifier in self._classifiers:
            classifier.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise UserError(f"--linear-probe needs a student with a classifier; {type(student).__name__} has none.")

    def train(self, mode: bool = True) -> "LinearProbeTask":
        """Set the mode of the classifier; all other layers stay in evaluation mode."""
        super().train(mode)
        self.student.eval()
        for classifier in self._classifiers:
            classifier.train(mode)
        return self
