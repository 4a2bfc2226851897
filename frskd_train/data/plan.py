"""Plans for sizing, storing, measuring and augmenting the images of a dataset, one for each kind of target."""

import math
from collections.abc import Callable, Iterator, Mapping
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
from frskd_train.errors import size_text
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
        self.preprocessing = without_statistics(settings, size, initial_cfg, self._crops_resized)
        self.evaluated = self.kept = EvalTransform(self.preprocessing)
        kept_size = _kept_size(sizes, size) if self._crops_resized else size
        if self._crops_resized:
            self.kept = partial(squash, kept_size, self.preprocessing.interpolation)
        self.mode = _mode(data, settings, channels * (len(train) * math.prod(kept_size) + len(val) * math.prod(size)))
        self.notes = [*_notes(self.preprocessing, sizes, initial_cfg, self._crops_resized)]
        if self._crops_resized and self.mode == "memory" and any(_exceeds(own, kept_size) for own in sizes):
            kept = size_text(*kept_size)
            self.notes.append(
                f"Training images are kept at {kept} and cropped there; --data-mode stream crops the originals."
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
        crop = ResizedCrop(width / height, preprocessing.input_size[1:], preprocessing.interpolation)
        return as_is, BatchAugmentation(settings, num_outputs, crop=crop)


def _input_size(wanted: tuple[int, ...] | None, sizes: set[tuple[int, int]], cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width as given, or the data's if all are equal and small, or the model's; a fixed one stays."""
    if wanted is not None:
        return wanted[0], wanted[-1]
    if len(sizes) == 1 and not cfg.get("fixed_input_size"):
        (size,) = sizes
        if max(size) <= SMALL:
            return max(size[0], 8), max(size[1], 8)
    _, height, width = cfg.get("input_size") or (3, 224, 224)
    return int(height), int(width)


def _crop_mode(settings: PreprocessingSettings, size: tuple[int, int], is_sample: bool) -> str:
    if settings.train_crop_mode != "auto":
        return settings.train_crop_mode
    if max(size) > SMALL:
        return "rrc"
    return "none" if is_sample and settings.crop_padding is None else "pad"  # the sample's garments fill the image


def _refuse_unused(settings: PreprocessingSettings, crop_mode: str, size: tuple[int, int]) -> None:
    own = PreprocessingSettings()
    if crop_mode != "rrc" and (settings.scale, settings.ratio) != (own.scale, own.ratio):
        raise UserError("--scale and --ratio have no effect without --train-crop-mode rrc: leave them out.")
    if crop_mode != "pad" and settings.crop_padding:
        raise UserError(f"--crop-padding has no effect with --train-crop-mode {crop_mode}: leave it out.")
    smallest, largest = (int(min(size) * side) for side in settings.cutmix_minmax or (0, 1))
    if smallest >= largest:
        raise UserError(f"--cutmix-minmax must give a range of sides; it is {smallest} to {largest} pixels here.")


def _padding(settings: PreprocessingSettings, size: tuple[int, int]) -> int:
    padding = settings.crop_padding if settings.crop_padding is not None else round(min(size) / 8)
    if padding > min(size):
        raise UserError(f"--crop-padding {padding} is more than the image, which is {size_text(*size)}.")
    return padding


def _kept_size(sizes: set[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of images kept for random resized crops; crops of larger ones would be aliased."""
    largest = round(size[0] * MARGIN), round(size[1] * MARGIN)
    return min(sizes) if len(sizes) == 1 and not _exceeds(min(sizes), largest) else largest


def _exceeds(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether a size is higher or wider than another one."""
    return size[0] > other[0] or size[1] > other[1]


def _mode(data: DataSettings, settings: PreprocessingSettings, size: int) -> Mode:
    one_by_one = [flag(name) for name in ONE_BY_ONE if getattr(settings, name)]
    if data.data_mode == "memory" and one_by_one:
        raise UserError(f"{one_by_one[0]} works on one image at a time, so --data-mode must be auto or stream.")
    return "stream" if one_by_one else choose_mode(data, lambda: size)


def _notes(
    preprocessing: Preprocessing, sizes: set[tuple[int, int]], initial_cfg: Mapping[str, Any], crops_resized: bool
) -> Iterator[str]:
    """Yield notes on weights trained at another size and on images of which validation uses only a part."""
    size = preprocessing.input_size[1:]
    trained = tuple(initial_cfg.get("input_size") or preprocessing.input_size)[1:]
    if trained != size:
        yield f"The initial weights were trained at {size_text(*trained)}; this run uses {size_text(*size)}."
    shapes = {own: own[1] * size[0] / (own[0] * size[1]) for own in sizes}  # width / height, relative to the input's
    cut = [own for own, shape in shapes.items() if not 2 / 3 <= shape <= 3 / 2]
    if preprocessing.crop_mode == "center" and cut:
        where = " in validation" if crops_resized else ""
        example = size_text(*cut[0])
        yield f"Only the centre of images such as {example} is used{where}; --crop-mode squash keeps all."


class DensePlan:
    """Plan for images at their own size, cropped in training, with targets per pixel; see `WholeImagePlan`."""

    num_measured: ClassVar = 256
    evaluated = kept = staticmethod(as_is)

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
        given = settings.img_size or (CROP,)
        height, width = given[0], given[-1]
        if settings.img_size is None and (sizes := set(train.sizes) - {(0, 0)}):
            largest = 32 * math.ceil(max(map(max, sizes)) / 32)  # divisible by the stride of most backbones
            height, width = sizes.pop() if len(sizes) == 1 else (largest, largest)
            height, width = min(height, CROP), min(width, CROP)
        self.preprocessing = without_statistics(settings, (height, width), initial_cfg)
        self.mode = choose_mode(data, lambda: dense_bytes(train, val))
        headers = train.images.headers(train.sample(LOOKED_AT).rows)
        turned = sum(header.is_turned for header in headers)
        part = f"{turned} of {len(headers)} training images" + (" looked at" if len(headers) < len(train) else "")
        what = "turned as their EXIF orientation says, and their masks must fit the turned images"
        self.notes = [f"{part} are {what}."] if turned else []

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


def choose_mode(data: DataSettings, size: Callable[[], float]) -> Mode:
    """Choose the mode by `--data-mode`; `auto` keeps decoded images, of `size()` bytes, up to `--memory-limit`."""
    if data.data_mode != "auto":
        return data.data_mode
    return "memory" if size() <= data.memory_limit * 2**30 else "stream"


def dense_bytes(*splits: Split) -> int:
    """Return the size in bytes of the decoded images and masks of splits."""
    return sum(h * w * (2 if split.mode == "L" else 4) for split in splits for h, w in split.sizes)
