"""From settings to data: find, check, choose rows, resolve the preprocessing, decode or prepare to stream."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from frskd_timm.errors import UserError
from frskd_train.data.cache import Cache, decode_all
from frskd_train.data.loader import Samples
from frskd_train.data.plan import DensePlan, Mode, Plan, WholeImagePlan, choose_mode, dense_bytes
from frskd_train.data.preprocessing import Preprocessing, given_statistics, measure
from frskd_train.data.sampler import spread
from frskd_train.data.source import find_source
from frskd_train.data.splits import Choice, Split
from frskd_train.data.targets import TARGETS
from frskd_train.data.training_data import TrainingData, ValidationData, left_out
from frskd_train.data.transforms import EvalTransform, SampleTransform, as_is
from frskd_train.settings import DataSettings, PreprocessingSettings


def load_data(
    data: DataSettings,
    preprocessing: PreprocessingSettings,
    *,
    task: str = "classification",
    model_cfg: Mapping[str, Any],
    use_model_stats: bool = False,
    num_outputs: int | None = None,
    resize_range: tuple[float, float] = (0.5, 2.0),
    progress: bool = False,
) -> TrainingData:
    """Load a dataset to train and validate on.

    The same rows are trained on and validated on whatever the seed of the run, so this takes none.

    Args:
        data: Where the images come from.
        preprocessing: Their size, colours and augmentation.
        task: Which targets: `classification` or `segmentation`.
        model_cfg: The student's timm configuration (`pretrained_cfg`): input_size, mean, std, fixed_input_size.
        use_model_stats: Take mean and std from `model_cfg` where the settings give none.
        num_outputs: The network's outputs, where they are more than the classes of the data.
        resize_range: Smallest and largest factor by which images with masks are resized before they are cropped.
        progress: Show a bar while images are decoded.

    Raises:
        UserError: No such dataset, or something in it or in the settings that cannot be trained on.
    """
    statistics = given_statistics(preprocessing, model_cfg, use_model_stats)
    source = find_source(data)
    pillow_mode: Literal["L", "RGB"] = "L" if preprocessing.in_chans == 1 else "RGB"
    train, val = Choice(source.splits, data, TARGETS[task], source.class_names, pillow_mode).training()
    targets = train.targets
    targets.find_classes(train.name, train.rows, progress)

    plan = (DensePlan if targets.is_dense else WholeImagePlan)(preprocessing, train, val, model_cfg, resize_range)
    mode = plan.choose_mode(data)
    train_samples = _samples(train, mode, plan, plan.kept, data, progress)
    val_samples = _samples(val, mode, plan, plan.evaluated, data, progress)
    if None in statistics:
        mean, std = measure(_measured(train_samples, plan, progress), preprocessing.in_chans)
        statistics = statistics[0] or mean, statistics[1] or std
    resolved = Preprocessing.of(preprocessing, plan.input_size, statistics)
    cache = train_samples.source if isinstance(train_samples.source, Cache) else None
    transform, augmentation = plan.augmentation(resolved, num_outputs or len(targets.class_names), cache)
    digest = hashlib.sha256("\0".join(targets.class_names).encode() + train.digest() + val.digest())
    lost = targets.lost_classes(train.name, train.rows, train_samples.source.rows)
    return TrainingData(
        name=source.name,
        id=source.id,
        license=source.license,
        homepage=source.homepage,
        train_split=train.name,
        val_split=val.name,
        class_names=targets.class_names,
        fingerprint=digest.hexdigest()[:16],
        preprocessing=resolved,
        mode=mode,
        notes=(*source.notes, *([lost] if lost else []), *_in_memory(train_samples), *_in_memory(val_samples)),
        train=replace(train_samples, transform=transform),
        val=val_samples,
        augmentation=augmentation,
    )


def load_validation(
    data: DataSettings,
    preprocessing: Preprocessing,
    *,
    task: str = "classification",
    class_names: Sequence[str] | None = None,
    progress: bool = False,
) -> ValidationData:
    """Load a dataset to evaluate a trained model on; no training image is decoded, nor is a training split needed.

    Args:
        data: Where the images come from: the rows that training would validate on, or all of `--val-split`.
        preprocessing: The model's, such as `Preprocessing.from_timm(resolve_data_config({}, model=model))`; in
            segmentation images keep their own size.
        task: As in `load_data`.
        class_names: The model's classes in the order of its outputs, to which labels are matched by name; None takes
            the dataset's own order.
        progress: Show a bar while images are decoded.

    Raises:
        UserError: No such dataset, or something in it that the model cannot be evaluated on.
    """
    source = find_source(data)
    channels, height, width = preprocessing.input_size
    if channels not in (1, 3):
        raise UserError(f"The model takes images of {channels} channels; only 1 (gray) and 3 (RGB) are supported.")
    pillow_mode: Literal["L", "RGB"] = "L" if channels == 1 else "RGB"
    split = Choice(source.splits, data, TARGETS[task], source.class_names, pillow_mode).validation(class_names)
    is_dense = split.targets.is_dense
    transform: SampleTransform = as_is if is_dense else EvalTransform(preprocessing)
    mode = choose_mode(data, dense_bytes(split) if is_dense else len(split) * channels * height * width)
    samples = _samples(split, mode, DensePlan if is_dense else WholeImagePlan, transform, data, progress)
    if is_dense:
        preprocessing = replace(preprocessing, input_size=(channels, *samples.source.sizes()[0]))
    return ValidationData(
        name=source.name,
        val_split=split.name,
        class_names=split.targets.class_names,
        preprocessing=preprocessing,
        notes=(*source.notes, *_in_memory(samples)),
        val=samples,
    )


def _samples(
    split: Split, mode: Mode, plan: Plan | type[Plan], kept: SampleTransform, data: DataSettings, progress: bool
) -> Samples:
    if mode == "stream":
        return Samples(split, kept, data.workers, data.bad_images)
    return Samples(decode_all(plan.in_memory(split), kept, data.bad_images, progress), as_is, 0, data.bad_images)


def _measured(samples: Samples, plan: Plan, progress: bool) -> Iterator[Tensor]:
    """Yield training images, as uint8 [N, C, H, W], whose mean and standard deviation are measured."""
    source = samples.source
    if isinstance(source, Split):
        source = decode_all(plan.in_memory(source.sample(plan.num_measured)), plan.evaluated, "skip", progress)
    if isinstance(source.images, Tensor):
        yield source.images
    else:
        yield from (source.images[place][None] for place in spread(len(source), plan.num_measured).tolist())


def _in_memory(samples: Samples) -> list[str]:
    """Return a sentence about the images that were left out when all were decoded."""
    return left_out(samples, samples.source.bad) if isinstance(samples.source, Cache) else []
