"""Segmentation, data side: scenes, VOC folders, mask columns, joint transforms, bad data."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pictures import labels_of, masked, picture, voc_folder
from pictures import load_masks as load
from PIL import Image
from torch import Tensor

from frskd_timm.errors import UserError
from frskd_timm.segmentation import SegmentationTask, create_segmentation_student
from frskd_train.data.sampler import ROW_SEED
from frskd_train.data.scenes import _background, compose, garments
from frskd_train.data.splits import Sample
from frskd_train.data.transforms import DenseTransform
from frskd_train.scoring.evaluate import evaluate
from frskd_train.settings import DataSettings, FitSettings
from frskd_train.tasks.segmentation import SegmentationJob

SMALL = "mobilenetv3_small_050"
SCENES = "fashion_mnist_scenes"


# --- Scenes ----------------------------------------------------------------------------------------------------------


def test_scenes_and_their_exact_masks() -> None:
    scenes = compose("train", 40)
    assert scenes.images.shape == (40, 3, 64, 64)
    assert set(np.unique(scenes.masks)) == set(range(11))

    # The background's pixels are the background that the scene began with, but for its noise; those of garments not.
    for number in range(40):
        empty = _background(np.random.default_rng([ROW_SEED, 0, number])).transpose(2, 0, 1)
        difference = np.abs(scenes.images[number] - empty).max(axis=0)
        outside = scenes.masks[number] == 0
        assert difference[outside].max() < 6 * 6
        assert np.mean(difference[~outside] > 6 * 3) > 0.8

    again = compose("train", 12)
    assert np.array_equal(again.images, scenes.images[:12])  # the same ones however many are wanted
    other = compose("test", 12)
    assert not np.array_equal(other.masks, again.masks)
    cloth = garments("train")[1]
    assert 0.3 < cloth.mean() < 0.7
    assert cloth[:, 12:16, 12:16].mean() > 0.75


def test_scenes_are_the_default_data() -> None:
    data = load(SCENES, train_num_samples=20)
    assert (data.name, data.num_classes, data.num_train, data.num_val) == (SCENES, 11, 20, 300)
    assert (data.license, data.mode, data.preprocessing.input_size) == ("mit", "memory", (3, 64, 64))
    assert data.fingerprint == load(SCENES, train_num_samples=20).fingerprint
    assert data.fingerprint != load(SCENES, train_num_samples=21).fingerprint
    assert load(SCENES, train_num_samples=20, in_chans=1).preprocessing.input_size == (1, 64, 64)


@pytest.mark.long
def test_it_learns() -> None:
    """Forty steps on sixteen scenes reduce the loss and give scores."""
    data = load(SCENES, train_num_samples=16, resize_range=(1, 1), hflip=0)
    torch.manual_seed(0)
    task = SegmentationTask.create(create_segmentation_student(SMALL, data.num_classes, channels=16))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    batches, losses = data.train_batches(8), []
    for epoch in range(20):
        for images, target in batches.epoch(epoch):
            task.set_progress(len(losses) / 40)
            result = task(images, target)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            losses.append(float(result["loss_ce"]))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    scores = evaluate(task.create_evaluator, task.eval().predict, batches.epoch(0), Accelerator(cpu=True))
    assert list(scores) == ["student", "self_teacher"]
    assert scores["student"]["images"] == 16


# --- Batches ---------------------------------------------------------------------------------------------------------


def test_batches_follow_from_seed_epoch_and_place() -> None:
    data = load(SCENES, train_num_samples=22, color_jitter=0.4)
    whole = data.train_batches(8, seed=3)
    epoch = list(whole.epoch(1))
    assert [tuple(target.shape) for _, target in epoch] == [(8, 64, 64)] * 2
    halves = [list(data.train_batches(4, seed=3, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    for step, (images, target) in enumerate(epoch):
        assert torch.equal(torch.cat([half[step][0] for half in halves]), images)
        assert torch.equal(torch.cat([half[step][1] for half in halves]), target)
    ((images, target),) = whole.epoch(1, start=1)
    assert torch.equal(images, epoch[1][0])
    assert torch.equal(target, epoch[1][1])
    assert not torch.equal(next(whole.epoch(2))[1], epoch[0][1])
    assert not torch.equal(next(data.train_batches(8, seed=4).epoch(1))[1], epoch[0][1])


@pytest.mark.parametrize("resize", [(1.0, 1.0), (0.5, 2.0)], ids=["own size", "resized"])
def test_image_and_mask_go_together(resize: tuple[float, float]) -> None:
    """The colour encodes the label and still does after crops, padding and flips of both."""
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(np.kron(rng.integers(0, 9, (4, 5)), np.ones((16, 16))).astype(np.uint8))
    pair = Sample((mask * 20)[None].expand(3, -1, -1).contiguous(), mask)
    augmentation = DenseTransform((48, 90), resize, 0.5, 0.5, 0.0, (200, 201, 202))
    off, padded = [], 0
    for seed in range(60):
        image, target = augmentation(pair, seed)
        assert (image.shape, target.shape) == ((3, 48, 90), (48, 90))
        hidden = target == 255
        assert (image[:, hidden] == torch.tensor([[200], [201], [202]])).all()
        padded += bool(hidden.any())
        off.append(float((image[0][~hidden].int() - 20 * target[~hidden].int()).abs().float().mean()))
    assert padded > 20
    # Resized, only the filter's mixing at borders is left: half a pixel between the two would make it 2.3.
    assert np.mean(off) < (2.05 if resize[0] < 1 else 1e-9)
    places = {augmentation(pair, seed)[1].numpy().tobytes() for seed in range(60)}
    assert len(places) > 55
    for axis, flips in ((2, (1.0, 0.0)), (1, (0.0, 1.0))):
        image, target = DenseTransform((64, 80), (1.0, 1.0), *flips, 0.0, (0, 0, 0))(pair, 0)
        assert torch.equal(image, pair.image.flip(axis))
        assert torch.equal(target, pair.target.flip(axis - 1))


# --- Folders and datasets --------------------------------------------------------------------------------------------


def test_voc_folder(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    (folder / "labels.txt").write_text("lawn\nroses\npond\n")
    data = load(folder, img_size=(32,))
    assert (data.name, data.class_names, data.num_train, data.num_val) == ("garden", ["lawn", "roses", "pond"], 6, 4)
    ((images, target),) = data.train_batches(6).epoch(0)
    assert (images.shape, target.shape) == ((6, 3, 32, 32), (6, 32, 32))

    # Validation: each image once, at its own size, unchanged; those of one size together, whatever the processes.
    found = []
    for rank in range(2):
        for images, target in data.val_batches(8, rank=rank, world_size=2):
            assert images.shape[2:] == target.shape[1:]
            found += [labels.numpy().astype(np.uint8) for labels in target]
    expected = [np.asarray(Image.open(folder / "SegmentationClass" / f"p_{number}.png")) for number in range(6, 10)]
    assert sorted(a.tobytes() for a in found) == sorted(a.tobytes() for a in expected)
    assert sorted(len(images) for images, _ in data.val_batches(8)) == [2, 2]

    assert len(load(voc_folder(tmp_path / "VOCdevkit" / "VOC2012")).class_names) == 21
    unnamed = load(voc_folder(tmp_path / "VOC_like"))
    assert unnamed.class_names == ["class 0", "class 1", "class 2"]
    assert unnamed.preprocessing.input_size == (3, 64, 64)  # of 40x30 and 36x44


def test_masks_are_matched_to_a_model_by_name(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    (folder / "labels.txt").write_text("lawn\nroses\npond\n")
    student = create_segmentation_student("test_resnet", 3, channels=8, class_names=["pond", "lawn", "roses"])

    def targets() -> list[Tensor]:
        data = DataSettings(str(folder))
        loaded = SegmentationJob.load_validation(data, FitSettings(), student)
        return [mask for _, batch in loaded.val_batches(1) for mask in batch]

    renumbered = targets()
    student.class_names = []
    for own, other in zip(targets(), renumbered, strict=True):
        assert torch.equal(torch.tensor([1, 2, 0, *[255] * 253])[own], other)
    student.class_names = ["lawn", "roses", "lake"]
    with pytest.raises(UserError, match=r"does not know pond: .* --class-map"):
        targets()


def test_streaming_gives_the_same_batches(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    kept = load(folder, img_size=(32,))
    for workers in (0, 1):
        streamed = load(folder, img_size=(32,), data_mode="stream", workers=workers)
        assert (streamed.mode, streamed.fingerprint) == ("stream", kept.fingerprint)
        for one, other in (
            (list(kept.train_batches(3).epoch(2, start=1)), list(streamed.train_batches(3).epoch(2, start=1))),
            (list(kept.val_batches(2)), list(streamed.val_batches(2))),
        ):
            assert len(one) == len(other) > 0
            assert all(
                torch.equal(a, b)
                for left, right in zip(one, other, strict=True)
                for a, b in zip(left, right, strict=True)
            )


def test_datasets_with_a_mask_column(tmp_path: Path) -> None:
    datasets.DatasetDict(train=masked(6), validation=masked(2)).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert (data.num_train, data.num_val, data.num_classes) == (6, 2, 3)
    assert data.preprocessing.input_size == (3, 30, 40)
    assert data.val_split == "validation"

    (tmp_path / "other").mkdir()
    masked(10, image="photo", mask="what").to_parquet(tmp_path / "other" / "train.parquet")
    data = load(tmp_path / "other", val_fraction=0.2)  # of two columns one is known, so the other is too
    assert (data.num_train, data.val.source.rows.tolist()) == (8, [5, 8])  # always the same ones
    ((_, target),) = data.val_batches(2)
    assert set(target.unique().tolist()) == {0, 1, 2, 255}
    assert load(tmp_path / "other", target_key="what", train_num_samples=4).num_train == 4


# --- Bad data --------------------------------------------------------------------------------------------------------


def too_small(folder: Path) -> None:
    Image.fromarray(labels_of(1, 20, 20)).save(folder / "SegmentationClass" / "p_1.png")


def label_out_of_range(folder: Path) -> None:
    (folder / "labels.txt").write_text("lawn\nroses\n")


def truncated_mask(folder: Path) -> None:
    path = folder / "SegmentationClass" / "p_1.png"
    noise = np.random.default_rng(0).integers(0, 3, (30, 40), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:150])


def coloured_mask(folder: Path) -> None:
    picture(1, 40, 30).save(folder / "SegmentationClass" / "p_1.png")


def compressed_mask(folder: Path) -> None:
    path = folder / "SegmentationClass" / "p_1.png"
    Image.open(path).convert("L").save(path, "jpeg")


def truncated_image(folder: Path) -> None:
    path = folder / "JPEGImages" / "p_1.jpg"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (too_small, r"Mask 1 of split train \(.*p_1.png\) is 20x20 pixels, but its image is 40x30"),
        (truncated_mask, r"Mask 1 of split train \(.*p_1.png\) cannot be read"),
        (coloured_mask, r"Mask 1 of split train .*its mode is RGB"),
        (compressed_mask, r"Mask 1 of split train .*it is a JPEG file"),
        (truncated_image, r"Image 1 of split train \(.*p_1.jpg\) cannot be read"),
    ],
)
def test_a_bad_pair_is_named_or_left_out(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    damage(folder)
    with pytest.raises(UserError, match=f"^{message}.*--bad-images skip") as caught:
        load(folder, img_size=(32,))
    assert "\n" not in str(caught.value)
    skipping = load(folder, img_size=(32,), bad_images="skip")
    assert (skipping.num_train, skipping.num_val) == (5, 4)
    assert "Left out 1 of 6 image(s)" in skipping.notes[0]

    streamed = load(folder, img_size=(32,), data_mode="stream", workers=0, bad_images="skip")
    assert [len(images) for images, _ in streamed.train_batches(6).epoch(0)] == [6]  # its neighbour takes the place
    assert len(streamed.bad_images()) == 1
    with pytest.raises(UserError, match=message):
        list(load(folder, img_size=(32,), data_mode="stream", workers=0).train_batches(6).epoch(0))


def test_mistakes(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    label_out_of_range(folder)
    with pytest.raises(UserError, match=r"Mask 0 of split train .* has label 2; labels must be 0 to 1, or 255"):
        load(folder)
    (folder / "labels.txt").unlink()
    with pytest.raises(UserError, match="--val-split test does not exist; the dataset has train, val"):
        load(folder, val_split="test")
    with pytest.raises(UserError, match="--train-num-samples 99: there are only 6"):
        load(folder, train_num_samples=99)
    (folder / "SegmentationClass" / "p_2.png").unlink()
    with pytest.raises(UserError, match=r"train.txt names p_2, but there is no .*SegmentationClass/p_2.png"):
        load(folder)
    for file in (folder / "ImageSets" / "Segmentation").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no list of a split"):
        load(folder)
    with pytest.raises(UserError, match="Segmentation needs a column of images and one of masks"):
        load("fashion_mnist_sample")
    (tmp_path / "unknown").mkdir()
    masked(4, image="a", mask="b").to_parquet(tmp_path / "unknown" / "train.parquet")
    with pytest.raises(UserError, match="unclear which of the columns a, b"):
        load(tmp_path / "unknown")
