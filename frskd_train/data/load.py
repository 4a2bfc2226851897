"""From settings to data: find, check, choose rows, resolve the preprocessing, decode or prepare to stream."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from frskd_timm.errors import UserError
from frskd_train.data.batches import Augmentation
from frskd_train.data.image_data import ImageData, ImageValidationData
from frskd_train.data.memory import MemoryImages, ResizedCrop, decode_all
from frskd_train.data.mix import Mix
from frskd_train.data.parts import Part, fingerprint, training_parts, validation_part
from frskd_train.data.preprocessing import (
    Preprocessing,
    check_augmentation,
    choose_crop_mode,
    choose_img_size,
    choose_padding,
    given_statistics,
    measure,
)
from frskd_train.data.source import find_source
from frskd_train.data.stream import StreamedImages
from frskd_train.data.transforms import Fit, Squash, Transform, streamed_transform
from frskd_train.settings import DataSettings, PreprocessingSettings

MEASURED = 2048  # images of a streamed dataset that give its mean and standard deviation
MARGIN = 8 / 7  # side of an image kept for random resized crops, relative to the network's input: 256 for 224


def load_data(
    data: DataSettings,
    preprocessing: PreprocessingSettings,
    *,
    model_cfg: Mapping[str, Any],
    use_model_stats: bool = False,
    num_outputs: int | None = None,
    progress: bool = False,
) -> ImageData:
    """Loads a dataset of images and classes to train and validate on.

    The same rows are trained on and validated on whatever the seed of the run, so this takes none.

    Args:
        data: Where the images come from.
        preprocessing: Their size, colours and augmentation.
        model_cfg: The student's timm configuration (`pretrained_cfg`): input_size, mean, std, fixed_input_size.
        use_model_stats: Take mean and std from `model_cfg` where the settings give none.
        num_outputs: The network's outputs, where they are more than the classes of the data.
        progress: Show a bar while images are decoded.

    Raises:
        UserError: No such dataset, or something in it or in the settings that cannot be trained on.
    """
    check_augmentation(preprocessing)
    statistics = given_statistics(preprocessing, model_cfg, use_model_stats)
    source = find_source(data)
    train, val, class_names = training_parts(source, data)

    sizes, gray = train.look()
    img_size = choose_img_size(preprocessing.img_size, sizes, model_cfg)
    crop_mode = choose_crop_mode(preprocessing, img_size)
    padding = choose_padding(preprocessing, img_size) if crop_mode == "pad" else 0
    kept = _size_in_memory(sizes, img_size) if crop_mode == "rrc" else (img_size, img_size)
    pixels = len(train.rows) * kept[0] * kept[1] + len(val.rows) * img_size**2
    mode = _choose_mode(data, preprocessing, pixels * (1 if gray else preprocessing.in_chans))

    unmeasured = Preprocessing.of(preprocessing, img_size, statistics)
    fit = Fit(unmeasured)
    train_transform = Squash(*kept, preprocessing.interpolation) if crop_mode == "rrc" else fit
    train_images = _images(train, mode, train_transform, preprocessing.in_chans, data, progress)
    val_images = _images(val, mode, fit, preprocessing.in_chans, data, progress)
    if None in statistics:
        if not isinstance(train_images, MemoryImages):
            measured = decode_all(train.sample(MEASURED), fit, preprocessing.in_chans, "skip", progress)
        else:
            measured = train_images
        mean, std = measure(measured.images, preprocessing.in_chans)
        statistics = statistics[0] or mean, statistics[1] or std
    resolved = Preprocessing.of(preprocessing, img_size, statistics)

    resized = ResizedCrop(img_size, preprocessing.scale, preprocessing.ratio, preprocessing.interpolation)
    augmentation = Augmentation(
        padding=padding,
        resized=resized if crop_mode == "rrc" else None,
        streamed=streamed_transform(preprocessing, resolved, crop_mode == "rrc"),
        hflip=preprocessing.hflip,
        vflip=preprocessing.vflip,
        reprob=preprocessing.reprob,
        mix=Mix(preprocessing.mixup, preprocessing.cutmix, num_outputs or len(class_names)),
    )
    return ImageData(
        name=source.info.name,
        id=source.info.id,
        license=source.info.license,
        homepage=source.info.homepage,
        train_split=train.images.split,
        val_split=val.images.split,
        class_names=class_names,
        fingerprint=fingerprint(class_names, train, val),
        preprocessing=resolved,
        mode=mode,
        notes=(*_empty_classes(class_names, train), *_left_out(train_images, val_images)),
        train=train_images,
        val=val_images,
        augmentation=augmentation,
    )


def load_validation(
    data: DataSettings,
    preprocessing: Preprocessing,
    *,
    class_names: Sequence[str] | None = None,
    progress: bool = False,
) -> ImageValidationData:
    """Loads a dataset to evaluate a trained model on; no training image is decoded, nor is a training split needed.

    Args:
        data: Where the images come from: the rows that training would validate on, or all of `--val-split`.
        preprocessing: The model's, such as `Preprocessing.from_timm(resolve_data_config({}, model=model))`.
        class_names: The model's classes in the order of its outputs, to which labels are matched by name; None takes
            the dataset's own order.
        progress: Show a bar while images are decoded.

    Raises:
        UserError: No such dataset, or something in it that the model cannot be evaluated on.
    """
    source = find_source(data)
    part, names = validation_part(source, data, class_names)
    channels, height, width = preprocessing.input_size
    if channels not in (1, 3):
        raise UserError(f"the model takes images of {channels} channels; only 1 (gray) and 3 (RGB) can be given")
    if data.data_mode != "auto":
        mode = data.data_mode
    else:
        mode = "memory" if len(part.rows) * channels * height * width <= data.memory_limit * 2**30 else "stream"
    images = _images(part, mode, Fit(preprocessing), 1 if channels == 1 else 3, data, progress)
    return ImageValidationData(
        name=source.info.name,
        val_split=part.images.split,
        class_names=names,
        preprocessing=preprocessing,
        notes=_left_out(images),
        val=images,
    )


def _images(
    part: Part,
    mode: Literal["memory", "stream"],
    transform: Transform,
    in_chans: Literal[1, 3],
    data: DataSettings,
    progress: bool,
) -> MemoryImages | StreamedImages:
    if mode == "memory":
        return decode_all(part, transform, in_chans, data.bad_images, progress)
    return StreamedImages(part, "L" if in_chans == 1 else "RGB", data.workers, data.bad_images)


def _size_in_memory(sizes: set[tuple[int, int]], img_size: int) -> tuple[int, int]:
    """Width and height at which images are kept for random resized crops: their own if that is not much too large."""
    if len(sizes) == 1:
        (size,) = sizes
        if max(size) <= 2 * img_size:
            return size
    side = round(img_size * MARGIN)
    return side, side


def _choose_mode(data: DataSettings, preprocessing: PreprocessingSettings, size: int) -> Literal["memory", "stream"]:
    one_by_one = "--aa" if preprocessing.aa else "--color-jitter" if preprocessing.color_jitter else None
    if data.data_mode == "memory" and one_by_one:
        raise UserError(f"{one_by_one} works on one image at a time, so --data-mode must be auto or stream")
    if data.data_mode != "auto":
        return data.data_mode
    return "stream" if one_by_one or size > data.memory_limit * 2**30 else "memory"


def _empty_classes(class_names: list[str], train: Part) -> tuple[str, ...]:
    empty = [class_names[target] for target in sorted(set(range(len(class_names))) - set(train.labels.tolist()))]
    shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
    return (f"{len(empty)} of {len(class_names)} classes have no training image: {shown}",) if empty else ()


def _left_out(*sources: MemoryImages | StreamedImages) -> tuple[str, ...]:
    bad = [message for source in sources for message in source.bad]
    return (f"left out {len(bad)} image(s); the first: {bad[0]}",) if bad else ()
