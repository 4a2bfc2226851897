"""Datasets of images and classes as batches, the same ones whatever the number of processes or workers."""

from frskd_train.data.batches import TrainBatches, ValBatches
from frskd_train.data.image_data import ImageData, ValidationData
from frskd_train.data.load import load_data, load_validation
from frskd_train.data.preprocessing import Preprocessing

__all__ = [
    "ImageData",
    "Preprocessing",
    "TrainBatches",
    "ValBatches",
    "ValidationData",
    "load_data",
    "load_validation",
]
