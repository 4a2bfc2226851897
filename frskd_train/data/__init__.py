"""Batches from datasets of images with classes or masks, independent of the number of processes and workers."""

from frskd_train.data.load import load_data, load_validation
from frskd_train.data.loaded import TrainingData, ValidationData
from frskd_train.data.preprocessing import Preprocessing

__all__ = ["Preprocessing", "TrainingData", "ValidationData", "load_data", "load_validation"]
