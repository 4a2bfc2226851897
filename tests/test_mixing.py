"""Mixup, CutMix and repeated augmentation of training batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import encoded, load, pictures, save, split
from PIL import Image

BOTH: dict[str, Any] = {"mixup": 0.4, "cutmix": 1.0}


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        ({"mixup": 0.4}, {"mixup"}),
        ({"cutmix": 1.0}, {"cutmix"}),
        (BOTH, {"mixup", "cutmix"}),
        (BOTH | {"mixup_switch_prob": 0.0}, {"mixup"}),
        (BOTH | {"mixup_prob": 0.0}, {"none"}),
        (BOTH | {"mixup_prob": 0.6, "mixup_off_epoch": 3}, {"mixup", "cutmix", "none"}),
        (BOTH | {"mixup_mode": "elem"}, {"mixup", "cutmix"}),
        ({"mixup": 0.4, "mixup_mode": "pair", "mixup_prob": 0.9}, {"mixup"}),
        ({"cutmix_minmax": (0.3, 0.7)}, {"cutmix"}),
    ],
)
def test_mixed_targets_say_what_the_images_are_made_of(
    chosen: dict[str, Any], wanted: set[str], tmp_path: Path
) -> None:
    # Images of one colour, which is the class: the mean of a mixed image follows from its target.
    colours = split([encoded(Image.new("RGB", (16, 16), (80 * k, 0, 0))) for k in (0, 1, 2) * 8], [0, 1, 2] * 8)
    plain = {"train_crop_mode": "none", "mean": (0.0,), "std": (1.0,)}
    data = load(save(tmp_path / "data", train=colours, test=colours), num_outputs=5, **plain, **chosen)
    kinds = set()
    for epoch in range(6):
        for images, target in data.train_batches(8, seed=7).epoch(epoch):
            assert target.shape == (8, 5)
            torch.testing.assert_close(target.sum(1), torch.ones(8))
            red = (target @ torch.tensor([0.0, 80.0, 160.0, 0.0, 0.0])) / 255
            torch.testing.assert_close(images[:, 0].mean((1, 2)), red, rtol=0, atol=1e-4)
            boxes = float(images[:, 0].flatten(1).std(1).max()) > 1e-6
            kinds.add("none" if float(target.max(1).values.min()) == 1 else "cutmix" if boxes else "mixup")
            assert kinds != {"none"} or epoch == 0 or wanted == {"none"}
            assert epoch < chosen.get("mixup_off_epoch", 9) or target.max(1).values.min() == 1
    assert kinds - {"none"} == wanted - {"none"}  # a batch of equal colours looks unmixed
    assert "none" not in wanted or "none" in kinds


def test_repeated_augmentation_shows_each_image_several_times_in_other_crops(tmp_path: Path) -> None:
    small = save(tmp_path / "data", train=pictures(37), test=pictures(5))
    plain, repeated = (load(small, aug_repeats=repeats).train_batches(6, seed=3) for repeats in (0, 3))
    rows = plain.order.permutation(1)
    assert repeated.order.permutation(1).tolist() == np.repeat(rows, 3)[:37].tolist()
    assert len(repeated) == len(plain)
    images, targets = next(repeated.epoch(1))
    assert targets.tolist() == np.repeat(next(plain.epoch(1))[1][:2], 3).tolist()
    assert len({image.numpy().tobytes() for image in images}) > 2
    assert load(small, aug_repeats=1.5).train_batches(6).order.permutation(0).tolist().count(rows[0]) <= 2


def test_images_are_erased_as_often_as_asked(tmp_path: Path) -> None:
    rows = save(tmp_path, train=pictures(100), test=pictures(3))
    plain, erased = (load(rows, train_crop_mode="none", reprob=chance) for chance in (0.0, 0.25))
    pairs = zip(*(next(data.train_batches(100).epoch(0))[0] for data in (plain, erased)), strict=True)
    assert 15 <= sum(not torch.equal(one, other) for one, other in pairs) <= 35


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_shares_are_drawn_for_each_batch_pair_or_image(mode: str, tmp_path: Path) -> None:
    rows = save(tmp_path, train=pictures(24), test=pictures(3))
    _, target = next(load(rows, mixup=1.0, mixup_mode=mode, num_outputs=3).train_batches(24).epoch(0))
    mixed = [round(float(share), 5) for share in target.max(1).values if share < 1]  # of images of two classes
    assert len(set(mixed)) == {"batch": 1, "pair": len(mixed) / 2, "elem": len(mixed)}[mode]
