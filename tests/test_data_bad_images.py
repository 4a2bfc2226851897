"""Unreadable images are named, left out or replaced, and every batch of every process stays full."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from pictures import damaged, encoded, labels_of, load, load_masks, masked, picture, save, split
from PIL import Image
from runs import small, start

from frskd_timm.errors import UserError

STREAM: dict[str, Any] = {"data_mode": "stream", "bad_images": "skip", "img_size": (12,), "mean": (0.5,), "std": (0.2,)}
BROKEN = {"bytes": b"not an image", "path": None}


@pytest.mark.parametrize("kind", ["truncated", "no image", "missing", "bomb", "program", "thread", "float", "empty"])
def test_a_bad_image_is_named_or_left_out(kind: str, tmp_path: Path) -> None:
    rows = [encoded(picture(k)) for k in range(24)]
    rows[7] = damaged(kind)
    labels = [k % 3 for k in range(24)]
    folder = save(tmp_path / "data", train=split(rows, labels), test=split(rows[:9], labels[:9]))

    with pytest.raises(UserError, match=r"^Image 7 of split train.* cannot be read: .*--bad-images skip") as caught:
        load(folder, img_size=(12,))
    assert "\n" not in str(caught.value)
    assert kind != "truncated" or "train/dog/7.png" in str(caught.value)
    skipping = load(folder, img_size=(12,), bad_images="skip")
    assert (skipping.num_train, skipping.num_val) == (23, 8)
    assert [note.split(". ")[0] for note in skipping.notes] == [
        "Left out 1 of 24 image(s) of split train",
        "Left out 1 of 9 image(s) of split test",
    ]

    workers = int(kind == "truncated")  # which do not depend on the kind
    streamed = load(folder, img_size=(12,), data_mode="stream", workers=workers)
    with pytest.raises(UserError, match=r"^Image 7 of split train.* cannot be read"):
        list(streamed.train_batches(24).epoch(0))
    streamed = load(folder, img_size=(12,), data_mode="stream", workers=workers, bad_images="skip")
    assert [len(target) for _, target in streamed.train_batches(12).epoch(0)] == [12, 12]
    assert [len(target) for _, target in streamed.val_batches(5)] == [5, 3]
    assert len(streamed.bad_images()) == 2


def mostly_broken(bad: range, count: int = 24) -> datasets.Dataset:
    rows = [BROKEN if k in bad else encoded(picture(k)) for k in range(count)]
    return split(rows, sorted(k % 3 for k in range(count)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_fills_every_batch_of_every_process(workers: int, tmp_path: Path) -> None:
    """More consecutive images are unreadable than a batch or a class has."""
    data = load(save(tmp_path / "data", train=mostly_broken(range(2, 22)), test=mostly_broken(range(9), 9)), **STREAM)
    whole = list(data.train_batches(8, seed=1).epoch(0))
    assert [len(images) for images, _ in whole] == [8, 8, 8]
    assert len({image.numpy().tobytes() for images, _ in whole for image in images}) > 4  # with flips and crops
    alone = load(tmp_path / "data", workers=workers, **STREAM)
    halves = [list(alone.train_batches(4, rank=rank, world_size=2, seed=1).epoch(0)) for rank in (0, 1)]
    for step, (images, target) in enumerate(whole):
        assert torch.equal(images, torch.cat([half[step][0] for half in halves]))
        assert torch.equal(target, torch.cat([half[step][1] for half in halves]))
    assert "none of the images of dog can be read" in " ".join(data.bad_images())

    # No validation image is left: that is no error, and said.
    assert list(data.val_batches(4)) == []
    assert "Left out 9 of 9 image(s) of split test" in data.bad_images()[-1]


def test_a_stream_without_a_readable_image_ends_in_a_sentence(tmp_path: Path) -> None:
    data = load(save(tmp_path / "data", train=mostly_broken(range(24))), **STREAM, workers=0)
    with pytest.raises(UserError, match=r"^None of the .* images of split train can be used; .* is: Image "):
        list(data.train_batches(8).epoch(0))


def test_a_class_without_a_readable_image_is_said(tmp_path: Path) -> None:
    data = load(
        save(tmp_path / "data", train=mostly_broken(range(8, 16)), test=mostly_broken(range(0), 9)), bad_images="skip"
    )
    assert any("none of the images of dog can be read" in note for note in data.notes)
    save(tmp_path / "val", train=mostly_broken(range(0)), test=mostly_broken(range(3, 6), 9))
    validated = load(tmp_path / "val", **STREAM)
    list(validated.val_batches(4))
    assert re.search("Left out 3 of 9 .*; none of the images of dog can be read", validated.bad_images()[-1])


def test_the_classes_of_masks_are_found_without_decoding_an_image(tmp_path: Path) -> None:
    rows = [encoded(picture(k, 40, 30), "JPEG") for k in range(12)]
    cut = [{"bytes": row["bytes"][:650], "path": None} for row in rows]  # a whole header, but no pixels
    masks = [encoded(Image.fromarray(labels_of(k, 40, 30))) for k in range(12)]
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    save(tmp_path / "data", train=datasets.Dataset.from_dict({"image": cut, "mask": masks}, features=features))
    data = load_masks(tmp_path / "data", data_mode="stream")
    assert data.class_names == ["class 0", "class 1", "class 2"]
    assert data.preprocessing.input_size == (3, 30, 40)


def test_a_validation_split_without_targets_is_refused(tmp_path: Path) -> None:
    test = split([encoded(picture(k)) for k in range(3)], [0, 1, 2]).rename_column("label", "mood")
    save(tmp_path / "data", train=split([encoded(picture(k)) for k in range(6)], [0, 1, 2] * 2), test=test)
    with pytest.raises(UserError, match="Split test has no column label; it has the columns image"):
        load(tmp_path / "data")
    save(tmp_path / "masks", train=masked(4), test=masked(2, mask="seg"))
    with pytest.raises(UserError, match="Split test has no column mask"):
        load_masks(tmp_path / "masks")


@pytest.mark.long
@pytest.mark.parametrize("broken", [range(12), range(24)], ids=["half", "all"])
def test_two_processes_end_together_where_images_cannot_be_read(broken: range, tmp_path: Path) -> None:
    save(tmp_path / "data", train=mostly_broken(broken), test=mostly_broken(range(0, 9, 2), 9))
    flags = small(tmp_path, "--data-mode", "stream", "--bad-images", "skip", "--workers", 1, "--img-size", 32)
    flags += ["--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2", "--output-dir", str(tmp_path / "run")]
    log = tmp_path / "log"
    status = start(*flags, "--grad-accum-steps", 2, processes=2, log=log).wait(300)
    said = log.read_text()
    assert "frskd_train/" not in said, said  # a traceback of ours; torchrun prints one of its own
    if len(broken) == 24:
        assert status != 0
        assert re.findall("error: (.*)", said) == [
            next(iter(re.findall("None of the 24 images of split train.*", said)))
        ]
        return
    assert status == 0, said
    assert re.search(r"Left out \d+ of 24 image\(s\) of split train", said), said
    assert "Left out 5 of 9 image(s) of split test" in said
    assert len((tmp_path / "run" / "summary.csv").read_text().splitlines()) == 3
