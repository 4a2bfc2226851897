"""Images and their masks."""

from typing import ClassVar

from frskd_train.data.dataset import TrainingData, ValidationData
from frskd_train.data.mask_batches import MaskTrainBatches, MaskValBatches


class MaskValidationData(ValidationData[MaskValBatches]):
    """Images and their masks, to evaluate a trained student on, each at its own size."""

    _val_batches: ClassVar = MaskValBatches


class MaskData(TrainingData[MaskTrainBatches, MaskValBatches]):
    """Images and their masks, to train and validate on; the input size is that of the training crops."""

    _train_batches: ClassVar = MaskTrainBatches
    _val_batches: ClassVar = MaskValBatches
