"""Datasets of images with classes or masks as batches, the same ones whatever the number of processes or workers."""

from frskd_train.data.batches import TrainBatches, ValBatches
from frskd_train.data.image_data import ImageData, ImageValidationData
from frskd_train.data.load import load_data, load_validation
from frskd_train.data.load_masks import load_mask_validation, load_masks
from frskd_train.data.mask_data import MaskData, MaskValidationData
from frskd_train.data.preprocessing import Preprocessing

__all__ = [
    "ImageData",
    "ImageValidationData",
    "MaskData",
    "MaskValidationData",
    "Preprocessing",
    "TrainBatches",
    "ValBatches",
    "load_data",
    "load_mask_validation",
    "load_masks",
    "load_validation",
]
