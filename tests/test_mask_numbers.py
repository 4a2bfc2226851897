"""What becomes of the numbers in masks: foreground of 255, palettes, ignored labels, bad formats, resizing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import labels_of, load_masks, masked, save, voc_folder
from PIL import ExifTags, Image

from frskd_timm.errors import UserError
from frskd_train.data import load_validation
from frskd_train.data.preprocessing import Preprocessing
from frskd_train.data.splits import Sample
from frskd_train.data.transforms import DenseTransform, nearest_window, pixels_of, resized_window
from frskd_train.settings import DataSettings

PREPROCESSING = Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def rewrite(folder: Path, change: Callable[[np.ndarray], np.ndarray], numbers: range = range(10)) -> Path:
    for number in numbers:
        path = folder / "SegmentationClass" / f"p_{number}.png"
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)
    return folder


@pytest.mark.parametrize(
    ("mode", "words"), [("RGB", "Mask 0 .*its mode is RGB"), ("L", "train have only the labels 0 and 255.*write")]
)
def test_masks_that_number_no_classes_are_explained(mode: str, words: str, tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    for number, path in enumerate(sorted((folder / "SegmentationClass").iterdir())):
        Image.new(mode, Image.open(path).size, ["black", "white"][number % 2]).save(path)
    with pytest.raises(UserError, match=words):
        load_masks(folder)


def test_foreground_of_255_is_found_in_every_split(tmp_path: Path) -> None:
    folder = rewrite(voc_folder(tmp_path / "garden"), lambda mask: np.minimum(mask, 1))
    assert load_masks(folder).num_classes == 2
    rewrite(folder, lambda mask: mask * np.uint8(255), range(6, 10))
    sentence = "split val have only the labels 0 and 255, which stands for no class: write foreground as 1"
    with pytest.raises(UserError, match=sentence):
        load_masks(folder)
    with pytest.raises(UserError, match=sentence):
        load_validation(DataSettings(str(folder)), PREPROCESSING, task="segmentation", classes=2)


def test_blurred_foreground_of_255_is_noticed(tmp_path: Path) -> None:
    def blurred(mask: np.ndarray) -> np.ndarray:
        scaled = Image.fromarray(np.where(np.arange(mask.shape[1]) < 9, np.uint8(255), mask * np.uint8(0)))
        return np.asarray(scaled.resize(scaled.size[::-1], Image.Resampling.BILINEAR))

    folder = voc_folder(tmp_path / "garden")
    rewrite(folder, blurred)
    for path in (folder / "JPEGImages").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(UserError, match=r"mostly the labels 0 and 255, .* as if resizing had blurred them"):
        load_masks(folder)
    assert load_masks(folder, ignore_label=(255,)).num_classes > 100


def test_missing_classes_and_turned_images_are_noted(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    (folder / "labels.txt").write_text("lawn\nroses\npond\nghost\n")
    path = min((folder / "JPEGImages").iterdir())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.open(path).save(path, exif=exif)
    turned, missing = load_masks(folder).notes
    assert turned.startswith("1 of 6 training images are turned as their EXIF orientation says, and their masks must")
    assert missing == "1 of 4 classes have no training image: ghost."


def test_palettes_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path / "garden")
    path = folder / "SegmentationClass" / "p_3.png"
    mask = Image.open(path)
    mask.putpalette([7 * place % 256 for place in range(768)])
    mask.save(path)
    sentence = r"Mask 3 of split train \(.*p_3.png\) has another palette than mask 0: number 0 stands for different"
    with pytest.raises(UserError, match=sentence):
        load_masks(folder)
    rewrite(folder, lambda mask: mask)  # without palettes
    assert load_masks(folder).num_train == 6


def test_ignored_labels_count_as_255(tmp_path: Path) -> None:
    folder = tmp_path / "rooms"
    save(folder, train=masked(6), test=masked(3))
    data = load_masks(folder, ignore_label=(0,))
    whole = load_masks(folder)
    for (_, mask), (_, plain) in zip(data.val_batches(3), whole.val_batches(3), strict=True):
        plain[plain == 0] = 255
        assert (mask == plain).all()
    assert any("class 0" in note for note in data.notes)  # without a training image
    load_masks(folder, ignore_label=(0, 1))  # one class beside ignored ones
    settings = DataSettings(str(folder), ignore_label=(0,))
    scored = load_validation(settings, PREPROCESSING, task="segmentation", classes=3)
    assert sum(int((mask == 0).sum()) for _, mask in scored.val_batches(3)) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "TIFF", "compression": "jpeg"}, "it is a TIFF file whose compression"),
        ({"format": "JPEG2000"}, "it is a JPEG2000 file whose compression"),
        ({"format": "TIFF", "tiffinfo": {262: 0}}, "it is a TIFF that stores white as 0"),
    ],
)
def test_formats_that_change_numbers_are_refused(options: dict, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "garden"
    for below in ("images", "masks"):
        (folder / below).mkdir(parents=True)
    for number in range(6):
        Image.effect_noise((40, 30), 90).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels_of(number, 40, 30)).save(folder / "masks" / f"{number}.tif", **options)
    with pytest.raises(UserError, match=f"Mask 0 of split train .*{words}"):
        load_masks(folder)


def test_a_part_of_the_classes_of_a_model_can_be_scored(tmp_path: Path) -> None:
    folder = rewrite(voc_folder(tmp_path / "garden"), lambda mask: np.where(mask == 255, mask, np.minimum(mask, 1)))
    (folder / "labels.txt").write_text("soil\nleaf\n")
    load = lambda classes: load_validation(
        DataSettings(str(folder)), PREPROCESSING, task="segmentation", classes=classes
    )
    masks = [mask for _, mask in load(["leaf", "sky", "soil"]).val_batches(4)]
    assert {int(label) for mask in masks for label in mask.unique()} <= {0, 2, 255}
    with pytest.raises(UserError, match="The model does not know leaf"):
        load(["soil", "sky"])
    rewrite(folder, lambda mask: np.where(mask == 1, 2, mask))
    with pytest.raises(UserError, match="it has label 2; labels must be 0 to 1"):
        [*load(["leaf", "sky", "soil"]).val_batches(4)]


@pytest.mark.parametrize("seed", range(20))
def test_a_window_of_a_resized_image_is_that_of_the_whole(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Without black and white, where Pillow 13 cuts off the overshoot of a window and of the whole differently.
    image = Image.fromarray(generator.integers(64, 192, (*generator.integers(5, 80, 2), 3), dtype=np.uint8))
    size = [max(1, round(side * generator.uniform(0.3, 3))) for side in (image.height, image.width)]
    window = [range(int(generator.integers(0, side)), side) for side in size]
    rows, columns = (slice(part.start, part.stop) for part in window)
    for interpolation in ("bilinear", "bicubic"):
        whole = image.resize(size[::-1], Image.Resampling[interpolation.upper()])
        found = resized_window(pixels_of(image), size, window, interpolation)
        assert (found.int() - pixels_of(whole)[:, rows, columns].int()).abs().max() <= 2
    whole = image.resize(size[::-1], Image.Resampling.NEAREST)
    same = nearest_window(pixels_of(image), size, window) == pixels_of(whole)[:, rows, columns]
    assert same.float().mean() > 0.9  # but for pixels between two


def test_scenes_are_resized_and_brightened_as_much_as_asked() -> None:
    """As often to half the size as to twice the size, and by up to a tenth of the brightness."""
    gray = Sample(torch.full((3, 16, 16), 100, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.uint8))
    transform = DenseTransform((40, 40), (0.5, 2.0), 0.0, 0.0, 0.1, (100, 100, 100))
    found = [transform(gray, seed) for seed in range(1000)]
    sides = [float((mask != 255).sum()) ** 0.5 / 16 for _, mask in found]
    assert (min(sides), max(sides)) == (0.5, 2)
    assert np.mean(np.array(sides) < 1) > 0.4  # not a third, as of factors between 0.5 and 2
    values = [int(image[0, 0, 0]) for image, _ in found]
    assert (min(values), max(values)) == pytest.approx((90, 110), abs=3)


def test_scenes_are_flipped_vertically_with_their_masks(tmp_path: Path) -> None:
    rows = save(tmp_path, train=masked(6), test=masked(3))
    whole = {"img_size": (30, 40), "resize_range": (1.0, 1.0)}
    plain, turned = (load_masks(rows, hflip=0.0, vflip=chance, **whole).train_batches(6) for chance in (0.0, 1.0))
    for one, other in zip(next(plain.epoch(0)), next(turned.epoch(0)), strict=True):
        assert torch.equal(one.flip(-2), other)


def test_padding_has_the_mean_colour(tmp_path: Path) -> None:
    rows = save(tmp_path, train=masked(6), test=masked(3))
    data = load_masks(rows, mean=(0.2, 0.4, 0.6), hflip=0.0, img_size=(60, 80), resize_range=(0.5, 0.5))
    images, masks = next(data.train_batches(6).epoch(0))
    padding = images.movedim(1, -1)[masks == 255]
    assert len(padding) > 6 * 0.7 * 60 * 80
    assert padding.abs().max() < 0.02
