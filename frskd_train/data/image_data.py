"""Images and their classes."""

from typing import ClassVar

from frskd_train.data.batches import TrainBatches, ValBatches
from frskd_train.data.dataset import TrainingData, ValidationData


class ImageValidationData(ValidationData[ValBatches]):
    """Images and their classes, to evaluate a trained model on."""

    _val_batches: ClassVar = ValBatches


class ImageData(TrainingData[TrainBatches, ValBatches]):
    """Images and their classes, to train and validate on."""

    _train_batches: ClassVar = TrainBatches
    _val_batches: ClassVar = ValBatches
