"""Which rows are trained on and which are validated on. Always the same ones: no seed of a run changes them."""

from collections.abc import Collection

import numpy as np

from frskd_timm.errors import UserError
from frskd_train.data.columns import Labels

FIXED = 210308273  # seeds the choices of rows, so that runs with different seeds see the same split
VALIDATION_SPLITS = ("validation", "val", "valid", "test")


def choose_splits(names: Collection[str], train: str | None, val: str | None) -> tuple[str, str | None]:
    """Chooses the split to train on and the one to validate on.

    Args:
        names: The splits that the dataset has.
        train: `--train-split`, if given.
        val: `--val-split`, if given.

    Returns:
        Both names; None for the second means that a part of the first is to be held out.

    Raises:
        UserError: A split that is not there, the same one twice, or none to train on.
    """
    listed = ", ".join(names)
    for setting, wanted in (("train", train), ("val", val)):
        if wanted is not None and wanted not in names:
            raise UserError(f"--{setting}-split {wanted}: the dataset has no such split, but {listed}")
    if train is None:
        if "train" in names:
            train = "train"
        elif len(names) == 1:
            (train,) = names
        else:
            raise UserError(f"the dataset has no split named train, but {listed}; choose with --train-split")
    if val is None:
        val = next((name for name in VALIDATION_SPLITS if name in names and name != train), None)
    elif val == train:
        raise UserError(f"--val-split {val} is the split that is trained on; choose another, or --val-fraction")
    return train, val


def hold_out(labels: Labels, fraction: float) -> tuple[Labels, Labels]:
    """Divides rows into training and validation rows, class by class; a class with one image is trained on.

    Args:
        labels: The class of each row.
        fraction: The share to hold out.

    Returns:
        Row numbers to train on and to validate on, both ascending.

    Raises:
        UserError: Nothing is left for one of the two.
    """
    rank, size = _rank_in_class(labels)
    held = np.maximum(np.round(size * fraction), 1) if fraction > 0 else np.zeros_like(size)
    is_held = rank < np.minimum(held, size - 1)
    if not is_held.any():
        # a class of two gives one of them, so a fraction above zero fails on classes of one only
        why = f"--val-fraction {fraction:g} holds out none of its {len(labels)} images"
        way = "a fraction above 0"
        if fraction > 0:
            why, way = "no class has a second image that --val-fraction could hold out", "more images of each class"
        raise UserError(f"the dataset has no validation split and {why}; give --val-split or {way}")
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def balanced_subset(labels: Labels, count: int, num_classes: int) -> Labels:
    """Chooses `count` rows, as many of each class as can be.

    Args:
        labels: The class of each row.
        count: How many rows to choose.
        num_classes: How many classes there are.

    Returns:
        Row numbers, ascending.

    Raises:
        UserError: There are fewer rows, or fewer than one of each class are wanted.
    """
    if count > len(labels):
        raise UserError(f"--train-num-samples {count}: there are only {len(labels)} training images")
    if count < num_classes:
        raise UserError(f"--train-num-samples {count} is less than one image for each of the {num_classes} classes")
    rank, _ = _rank_in_class(labels)
    return np.sort(np.argsort(rank, kind="stable")[:count])


def _rank_in_class(labels: Labels) -> tuple[Labels, Labels]:
    """Each row's place in a fixed random order of its class, and the size of its class."""
    shuffled = np.random.default_rng(FIXED).permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    size = np.bincount(labels)
    start = np.cumsum(size) - size
    rank = np.empty_like(labels)
    rank[grouped] = np.arange(len(labels)) - np.repeat(start, size)
    return rank, size[labels]
