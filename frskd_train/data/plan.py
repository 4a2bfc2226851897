"""From the images of a dataset to how they are sized, kept, measured and augmented: one plan for each kind of image."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from frskd_timm.errors import UserError
from frskd_train.data.augment import BatchAugmentation, Mix, ResizedCrop
from frskd_train.data.batches import Augmentation
from frskd_train.data.cache import Cache
from frskd_train.data.preprocessing import (
    Preprocessing,
    check_augmentation,
    choose_crop_mode,
    choose_img_size,
    choose_padding,
)
from frskd_train.data.splits import Split
from frskd_train.data.transforms import (
    DenseTransform,
    EvalTransform,
    PolicyTransform,
    SampleTransform,
    Squash,
    as_is,
)
from frskd_train.settings import DataSettings, PreprocessingSettings

Mode = Literal["memory", "stream"]
LOOKED_AT = 256  # images whose headers tell what sizes and colours the dataset has
MARGIN = 8 / 7  # side of an image kept for random resized crops, relative to the network's input: 256 for 224
CROP = 512  # pixels at most of a side of segmentation's training crops, by default


class WholeImagePlan:
    """Images resized to one size, for targets of the whole image.

    Attributes:
        input_size: Height and width of the network's input.
        kept: The transform of training images that are kept in memory.
        num_measured: How many images mean and deviation are measured on, unless all are in memory at one size.
    """

    num_measured: ClassVar = 2048
    kept: SampleTransform

    def __init__(
        self, settings: PreprocessingSettings, train: Split, val: Split, model_cfg: Mapping[str, Any], resize: object
    ) -> None:
        check_augmentation(settings)
        self._settings = settings
        self._counts = len(train), len(val)
        found = [header for header in train.sample(LOOKED_AT).headers() if header is not None]
        sizes = {header.size for header in found}
        self._is_gray = all(header.is_gray for header in found)
        size = choose_img_size(settings.img_size, sizes, model_cfg)
        self.input_size = size, size
        self._crop_mode = choose_crop_mode(settings, size)
        self._padding = choose_padding(settings, size) if self._crop_mode == "pad" else 0
        self._kept_size = _size_in_memory(sizes, size) if self._crop_mode == "rrc" else self.input_size
        height, width = self._kept_size
        crops_resized = self._crop_mode == "rrc"
        self.kept = Squash(width, height, settings.interpolation) if crops_resized else self.evaluated()

    @staticmethod
    def in_memory(split: Split) -> Split:
        """The split as it is decoded for memory: gray images take a third there."""
        return replace(split, mode="L" if split.mode == "L" else None)

    def evaluated(self) -> SampleTransform:
        """The transform of validation images."""
        return EvalTransform(Preprocessing.of(self._settings, self.input_size, (None, None)))

    def choose_mode(self, data: DataSettings) -> Mode:
        """Chooses `memory` or `stream`.

        Raises:
            UserError: An augmentation that works on single images, with `--data-mode memory`.
        """
        settings = self._settings
        one_by_one = "--aa" if settings.aa else "--color-jitter" if settings.color_jitter else None
        if data.data_mode == "memory" and one_by_one:
            raise UserError(f"{one_by_one} works on one image at a time, so --data-mode must be auto or stream.")
        if data.data_mode != "auto":
            return data.data_mode
        pixels = self._counts[0] * self._kept_size[0] * self._kept_size[1] + self._counts[1] * self.input_size[0] ** 2
        return "stream" if one_by_one else fits(data, pixels * (1 if self._is_gray else settings.in_chans))

    def augmentation(self, preprocessing: Preprocessing, num_outputs: int, cache: Cache | None) -> Augmentation:
        """What is done to training images, given those in memory if they are."""
        settings, crops_resized = self._settings, self._crop_mode == "rrc"
        resized = None
        streamed = PolicyTransform.of(settings, preprocessing, crops_resized)  # to find a mistaken policy in any case
        if crops_resized and cache is not None:
            height, width = cache.original_sizes.T
            size = self.input_size[0]
            resized = ResizedCrop(size, settings.scale, settings.ratio, settings.interpolation, width / height)
        mix = Mix(settings.mixup, settings.cutmix, num_outputs)
        batch = BatchAugmentation(resized, self._padding, settings.hflip, settings.vflip, settings.reprob, mix)
        return Augmentation(streamed if cache is None else as_is, batch)


class DensePlan:
    """Images at their own size, cropped in training, for targets of each pixel; see `WholeImagePlan`."""

    num_measured: ClassVar = 256
    kept = staticmethod(as_is)

    def __init__(
        self,
        settings: PreprocessingSettings,
        train: Split,
        val: Split,
        model_cfg: Mapping[str, Any],
        resize: tuple[float, float],
    ) -> None:
        self._settings = settings
        self._resize = resize
        self._splits = train, val
        if settings.img_size is not None:
            self.input_size = settings.img_size, settings.img_size
        else:
            sizes = set(train.sizes()) - {(0, 0)}
            height, width = sizes.pop() if len(sizes) == 1 else (CROP, CROP)
            self.input_size = min(height, CROP), min(width, CROP)

    @staticmethod
    def in_memory(split: Split) -> Split:
        """See `WholeImagePlan`; images of one dataset cannot differ in their channels here."""
        return split

    def evaluated(self) -> SampleTransform:
        """The transform of validation images."""
        return as_is

    def choose_mode(self, data: DataSettings) -> Mode:
        """Chooses `memory` or `stream`."""
        if data.data_mode != "auto":
            return data.data_mode
        return fits(data, dense_bytes(*self._splits))

    def augmentation(self, preprocessing: Preprocessing, num_outputs: int, cache: Cache | None) -> Augmentation:
        """What is done to training images and masks."""
        settings = self._settings
        fill = tuple(round(255 * value) for value in preprocessing.mean)
        flips = settings.hflip, settings.vflip
        transform = DenseTransform(
            self.input_size, self._resize, *flips, settings.color_jitter, fill, settings.interpolation
        )
        return Augmentation(transform, BatchAugmentation())


Plan = WholeImagePlan | DensePlan


def fits(data: DataSettings, size: float) -> Mode:
    """`memory` for bytes up to `--memory-limit`, else `stream`."""
    return "memory" if size <= data.memory_limit * 2**30 else "stream"


def dense_bytes(*splits: Split) -> int:
    """Bytes of the decoded images and masks of splits."""
    channels = {"L": 1, "RGB": 3, None: 3}
    return sum(height * width * (channels[part.mode] + 1) for part in splits for height, width in part.sizes())


def _size_in_memory(sizes: set[tuple[int, int]], img_size: int) -> tuple[int, int]:
    """Height and width at which images are kept for random resized crops: their own if not much too large."""
    if len(sizes) == 1:
        (size,) = sizes
        if max(size) <= 2 * img_size:
            return size
    side = round(img_size * MARGIN)
    return side, side
