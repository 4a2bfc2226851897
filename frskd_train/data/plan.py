"""Plans for sizing, storing, measuring and augmenting the images of a dataset, one for each kind of target."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from frskd_timm.errors import UserError
from frskd_train.data.augment import BatchAugmentation, ResizedCrop
from frskd_train.data.cache import Cache
from frskd_train.data.preprocessing import SMALL, Preprocessing, without_statistics
from frskd_train.data.source import SAMPLE_NAME
from frskd_train.data.splits import Split
from frskd_train.data.transforms import DenseTransform, EvalTransform, PolicyTransform, SampleTransform, as_is, squash
from frskd_train.settings import DataSettings, PreprocessingSettings, flag

Mode = Literal["memory", "stream"]
LOOKED_AT = 256  # images whose headers are read to find the sizes and colours of the dataset
MARGIN = 8 / 7  # side of an image kept for random resized crops, relative to the network's input: 256 for 224
ONE_BY_ONE = ("aa", "color_jitter", "grayscale_prob", "gaussian_blur_prob")  # settings that need single images
CROP = 512  # largest side in pixels of the training crops in segmentation, by default


class WholeImagePlan:
    """Plan for images resized to one size, with targets of the whole image."""

    num_measured: ClassVar = 2048  # images for measuring mean and deviation, unless all are in memory at one size
    preprocessing: Preprocessing  # of the network's input, with a neutral mean and standard deviation
    evaluated: SampleTransform  # of validation images
    kept: SampleTransform  # of training images that are kept in memory
    mode: Mode
    notes: list[str]  # for the user

    def __init__(
        self,
        data: DataSettings,
        settings: PreprocessingSettings,
        train: Split,
        val: Split,
        cfg: Mapping[str, Any],
        initial_cfg: Mapping[str, Any],
    ) -> None:
        self._settings = settings
        headers = train.images.headers(train.sample(LOOKED_AT).rows)
        sizes = {header.size for header in headers} - {(0, 0)}
        channels = 1 if all(header.is_gray for header in headers) else settings.in_chans
        size = _input_size(settings.img_size, sizes, cfg)
        crop_mode = _crop_mode(settings, size, data.dataset == SAMPLE_NAME)
        self._crops_resized = crop_mode == "rrc"
        _refuse_unused(settings, crop_mode, size)
        self._padding = _padding(settings, size) if crop_mode == "pad" else 0
        self.preprocessing = without_statistics(settings, (size, size), initial_cfg, self._crops_resized)
        self.evaluated = self.kept = EvalTransform(self.preprocessing)
        kept_size = _kept_size(sizes, size) if self._crops_resized else (size, size)
        if self._crops_resized:
            self.kept = partial(squash, kept_size, self.preprocessing.interpolation)
        self.mode = _mode(data, settings, channels * (len(train) * math.prod(kept_size) + len(val) * size**2))
        self.notes = [*_notes(self.preprocessing, sizes, initial_cfg, self._crops_resized)]
        if self._crops_resized and self.mode == "memory" and any(max(own) > max(kept_size) for own in sizes):
            kept = _width_first(kept_size)
            self.notes.append(
                f"Training images are kept at {kept} pixels and cropped there; --data-mode stream crops the originals."
            )

    def augmentation(
        self, preprocessing: Preprocessing, num_outputs: int, cache: Cache | None
    ) -> tuple[SampleTransform, BatchAugmentation]:
        """Return what is done to each training sample, decoded already if there is a cache, and then to each batch."""
        settings = self._settings
        streamed = PolicyTransform(settings, preprocessing, self._crops_resized)  # always created, to check the policy
        if cache is None:
            return streamed, BatchAugmentation(settings, num_outputs, self._padding)
        if not self._crops_resized:
            return as_is, BatchAugmentation(settings, num_outputs, self._padding)
        height, width = np.array(cache.sizes).T
        crop = ResizedCrop(width / height, preprocessing.input_size[1], preprocessing.interpolation)
        return as_is, BatchAugmentation(settings, num_outputs, crop=crop)


def _input_size(wanted: int | None, sizes: set[tuple[int, int]], cfg: Mapping[str, Any]) -> int:
    """Return the given side, or the data's if all are equal and small, or the model's; a fixed size is kept."""
    if wanted is not None:
        return wanted
    if len(sizes) == 1 and not cfg.get("fixed_input_size"):
        (size,) = sizes
        if max(size) <= SMALL:
            return max(min(size), 8)
    height, width = (cfg.get("input_size") or (3, 224, 224))[1:]
    if height != width:
        raise UserError(f"The model expects {width}x{height} pixels, but training uses square images: give --img-size.")
    return int(width)


def _crop_mode(settings: PreprocessingSettings, size: int, is_sample: bool) -> str:
    if settings.train_crop_mode != "auto":
        return settings.train_crop_mode
    if size > SMALL:
        return "rrc"
    return "none" if is_sample and settings.crop_padding is None else "pad"  # the sample's garments fill the image


def _refuse_unused(settings: PreprocessingSettings, crop_mode: str, size: int) -> None:
    own = PreprocessingSettings()
    if crop_mode != "rrc" and (settings.scale, settings.ratio) != (own.scale, own.ratio):
        raise UserError("--scale and --ratio have no effect without --train-crop-mode rrc: leave them out.")
    if crop_mode != "pad" and settings.crop_padding:
        raise UserError(f"--crop-padding has no effect with --train-crop-mode {crop_mode}: leave it out.")
    smallest, largest = (int(size * side) for side in settings.cutmix_minmax or (0, 1))
    if smallest >= largest:
        raise UserError(f"--cutmix-minmax must give a range of sides; it is {smallest} to {largest} pixels here.")


def _padding(settings: PreprocessingSettings, size: int) -> int:
    padding = settings.crop_padding if settings.crop_padding is not None else round(size / 8)
    if padding > size:
        raise UserError(f"--crop-padding {padding} is more than the image, which is {size} pixels high.")
    return padding


def _kept_size(sizes: set[tuple[int, int]], size: int) -> tuple[int, int]:
    """Return height and width of images kept for random resized crops; crops of larger ones would be aliased."""
    if len(sizes) == 1 and max(max(sizes)) <= round(size * MARGIN):
        return min(sizes)
    return round(size * MARGIN), round(size * MARGIN)


def _mode(data: DataSettings, settings: PreprocessingSettings, size: int) -> Mode:
    one_by_one = [flag(name) for name in ONE_BY_ONE if getattr(settings, name)]
    if data.data_mode == "memory" and one_by_one:
        raise UserError(f"{one_by_one[0]} works on one image at a time, so --data-mode must be auto or stream.")
    return "stream" if one_by_one else choose_mode(data, size)


def _notes(
    preprocessing: Preprocessing, sizes: set[tuple[int, int]], initial_cfg: Mapping[str, Any], crops_resized: bool
) -> Iterator[str]:
    """Yield notes on weights trained at another size and on images of which validation uses only a part."""
    size = preprocessing.input_size[1:]
    trained = tuple(initial_cfg.get("input_size") or preprocessing.input_size)[1:]
    if trained != size:
        yield f"The initial weights were trained at {_width_first(trained)}; this run uses {_width_first(size)}."
    cut = [own for own in sizes if 3 * min(own) < 2 * max(own)]
    if preprocessing.crop_mode == "center" and cut:
        where = " in validation" if crops_resized else ""
        example = _width_first(cut[0])
        yield f"Only the central square of images such as {example} is used{where}; --crop-mode squash keeps all."


def _width_first(size: tuple[int, int]) -> str:
    """Return height and width as users write sizes."""
    return "x".join(map(str, reversed(size)))


class DensePlan:
    """Plan for images at their own size, cropped in training, with targets per pixel; see `WholeImagePlan`."""

    num_measured: ClassVar = 256
    evaluated = kept = staticmethod(as_is)
    notes: ClassVar = ()

    def __init__(
        self,
        data: DataSettings,
        settings: PreprocessingSettings,
        train: Split,
        val: Split,
        initial_cfg: Mapping[str, Any],
        resize: tuple[float, float],
    ) -> None:
        self._settings, self._resize = settings, resize
        height = width = settings.img_size or CROP
        if settings.img_size is None and (sizes := set(train.sizes) - {(0, 0)}):
            largest = 32 * math.ceil(max(map(max, sizes)) / 32)  # divisible by the stride of most backbones
            height, width = sizes.pop() if len(sizes) == 1 else (largest, largest)
            height, width = min(height, CROP), min(width, CROP)
        self.preprocessing = without_statistics(settings, (height, width), initial_cfg)
        self.mode = choose_mode(data, dense_bytes(train, val) if data.data_mode == "auto" else 0)

    def augmentation(
        self, preprocessing: Preprocessing, num_outputs: int, cache: Cache | None
    ) -> tuple[SampleTransform, BatchAugmentation]:
        """Return what is done to each training sample, and then to each batch."""
        settings = self._settings
        fill = tuple(round(255 * value) for value in preprocessing.mean)
        others = settings.hflip, settings.vflip, settings.color_jitter, fill, preprocessing.interpolation
        transform = DenseTransform(preprocessing.input_size[1:], self._resize, *others)
        return transform, BatchAugmentation(replace(settings, hflip=0.0, vflip=0.0))


Plan = WholeImagePlan | DensePlan


def choose_mode(data: DataSettings, size: float) -> Mode:
    """Choose the mode by `--data-mode`; `auto` keeps decoded images in memory up to `--memory-limit`."""
    if data.data_mode != "auto":
        return data.data_mode
    return "memory" if size <= data.memory_limit * 2**30 else "stream"


def dense_bytes(*splits: Split) -> int:
    """Return the size in bytes of the decoded images and masks of splits."""
    return sum(h * w * (2 if split.mode == "L" else 4) for split in splits for h, w in split.sizes)
