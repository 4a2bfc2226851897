"""Errors for lack of memory, with the settings that need it."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from frskd_timm.errors import UserError
from frskd_train.data import TrainingData
from frskd_train.errors import size_text
from frskd_train.run.folder import RunFolder
from frskd_train.run.state import RunState
from frskd_train.settings import LoopSettings


def enough_for_training(
    loop: LoopSettings, data: TrainingData, folder: RunFolder, state: RunState
) -> AbstractContextManager[None]:
    """Raise UserError if there is not enough memory for a step."""
    size = size_text(*data.preprocessing.input_size[1:])
    less = "--grad-checkpointing" if state.last_checkpoint else "a smaller --batch-size, with --grad-accum-steps"
    if data.mode == "memory":  # that of the GPU, if there is one
        less += ", or --data-mode stream"
    return _enough(f"training with --batch-size {loop.batch_size} at {size}", less, folder)


def enough_for_validation(loop: LoopSettings, folder: RunFolder) -> AbstractContextManager[None]:
    """Raise UserError if there is not enough memory for a batch of validation."""
    count = loop.images_per_validation_batch
    return _enough(f"validation with {count} images per batch", "a smaller --validation-batch-size", folder)


@contextmanager
def _enough(need: str, less: str, folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or re.search("can't allocate memory|ALLOC_FAILED", str(error)):
            raise UserError(
                f"There is not enough memory for {need}: give {less}, and continue with --resume {folder.quoted}."
            ) from error
        raise
