"""Settings of the images, for training and for `validate.py`."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from tyro.conf import Suppress, arg

from frskd_train.settings.constraints import (
    CLASSIFICATION,
    FIXED,
    LOCAL,
    PRIVATE,
    SEGMENTATION,
    SIDES,
    Count,
    Fraction,
    NotNegative,
    Positive,
    Range,
)
from frskd_train.settings.library import DEFAULT

OWN_DATA = "auto"  # the dataset of `validate.py` if none is given


@dataclass(frozen=True)
class DataSettings:
    """Where the images come from."""

    dataset: Annotated[str, LOCAL] = "fashion_mnist_sample"
    """The included sample (fashion_mnist_sample), a folder or the id of a dataset on the Hub.
    A folder has one subfolder per class, metadata.csv or .jsonl, parquet or arrow files, or a save_to_disk dataset.
    For segmentation: fashion_mnist_scenes (generated), a folder with images/ and masks/, or Pascal VOC or Cityscapes.
    Datasets with a column of images and one of masks also work."""
    dataset_config: str | None = None
    """Name of the configuration (subset), for Hub datasets that have several."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    train_split: str | None = None
    """Split to train on; by default train or training, or the only split of the dataset."""
    val_split: str | None = None
    """Split to validate on; by default the first of validation, val, valid, dev, test and testing that has labels."""
    val_fraction: Annotated[float, Range(low=0, high=0.9)] = 0.1
    """Fraction of the training split that is held out if there is no validation split.
    It is the same for each class; images with masks are chosen at random."""
    calibration_split: str | None = None
    """Split for fitting the temperature that calibrates the student; used neither for training nor for scoring."""
    input_key: str | None = None
    """Column of the images; by default the only image column."""
    target_key: str | None = None
    """Column of the labels; by default the only class column, or one named label, labels, class, fine_label or target.
    For segmentation the column of the masks."""
    class_map: Annotated[str | None, LOCAL] = None
    """File that maps the classes of the data to the outputs of the model; for segmentation, it names the labels.
    One name per line in the order of the outputs, or a name and a number per line."""
    ignore_label: Annotated[tuple[int, ...] | None, Range(low=0, high=65535), SEGMENTATION, FIXED] = None
    """Mask values that do not stand for a class, in addition to 255, such as 0 for ADE20K."""
    train_num_samples: Annotated[int | None, Count] = None
    """Train on this many images only, always the same ones.
    They are balanced over the classes as far as possible; images with masks are chosen at random."""
    data_mode: Literal["auto", "memory", "stream"] = "auto"
    """memory: decode once, keep as uint8, augment in batches. stream: decode in workers. auto: memory if it fits."""
    memory_limit: Annotated[float, Positive, PRIVATE] = 2.0
    """Size in GiB of the decoded images up to which `auto` keeps a dataset in memory, in each process."""
    workers: Annotated[int, arg(aliases=["-j"]), NotNegative, PRIVATE] = 2
    """Worker processes that decode images for each training process when streaming."""
    bad_images: Literal["stop", "skip"] = "stop"
    """stop: end the run at an unreadable image and name it. skip: leave it out and count it.
    When streaming, another image takes the place of a skipped one."""


@dataclass(frozen=True)
class PreprocessingSettings:
    """Size, colours and augmentation of the images."""

    img_size: Annotated[tuple[int, ...] | None, SIDES, Range(low=8, high=4096), FIXED] = None
    """Side of a square, or height and width, in pixels; for segmentation, of the training crops.
    By default the images' own size, if all have the same size of at most 64 pixels and the model takes any.
    Otherwise the size of the model, or in segmentation that of the data up to 512."""
    in_chans: Annotated[Literal[1, 3], FIXED] = 3
    """Input channels of the student; grayscale images are repeated to 3 channels."""
    mean: Annotated[tuple[float, ...] | None, Fraction] = None
    """Mean of the pixel values (0..1), per channel or one for all.
    By default that of the initial weights if there are any, else measured on the training images."""
    std: Annotated[tuple[float, ...] | None, Range(above=0, high=1)] = None
    """Standard deviation of the pixel values; the default is as for --mean."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resizing filter for training and validation; by default that of the initial weights, else bilinear."""
    crop_pct: Annotated[float | None, Range(above=0, high=1), CLASSIFICATION] = None
    """Fraction of the resized side that the centre crop keeps, in validation and in training without rrc.
    By default 1; with rrc (--train-crop-mode), that of the initial weights if there are any."""
    crop_mode: Annotated[Literal["center", "squash"] | None, CLASSIFICATION] = None
    """How images with another aspect ratio are fitted, in validation and in training without random resized crops.
    center: resize to cover the input and crop the centre. squash: stretch to the size of the input.
    By default that of the initial weights if there are any, else center."""
    train_crop_mode: Annotated[Literal["auto", "pad", "rrc", "none"], CLASSIFICATION] = "auto"
    """pad: random crop of the padded image. rrc: random resized crop. auto: pad up to 64 pixels, else rrc.
    With auto, the included sample is cropped only if --crop-padding is given."""
    crop_padding: Annotated[int | None, NotNegative, CLASSIFICATION] = None
    """Pixels of padding on each side for `pad`; by default an eighth of the shorter side (4 at 32)."""
    scale: Annotated[tuple[float, float], Range(above=0, high=1), CLASSIFICATION] = (0.08, 1.0)
    """Smallest and largest fraction of the image area that rrc keeps."""
    ratio: Annotated[tuple[float, float], Positive, CLASSIFICATION] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of rrc."""
    hflip: Annotated[float, Fraction] = 0.5
    """Probability of a horizontal flip."""
    vflip: Annotated[float, Fraction] = 0.0
    """Probability of a vertical flip."""
    color_jitter: Annotated[float, NotNegative] = 0.0
    """Strength of random brightness, contrast and saturation; in classification it implies --data-mode stream."""
    color_jitter_prob: Annotated[float | None, Fraction, CLASSIFICATION] = None
    """Probability of --color-jitter; always by default."""
    grayscale_prob: Annotated[float, Fraction, CLASSIFICATION] = 0.0
    """Probability of a conversion to gray; implies --data-mode stream."""
    gaussian_blur_prob: Annotated[float, Fraction, CLASSIFICATION] = 0.0
    """Probability of a Gaussian blur (23 pixels wide); implies --data-mode stream."""
    aa: Annotated[str | None, CLASSIFICATION] = None
    """timm's AutoAugment / RandAugment policy, such as rand-m9-mstd0.5; implies --data-mode stream."""
    aug_repeats: Annotated[float, Range(low=0, high=1000)] = 0.0
    """Number N of times each image appears in a row, with different augmentation (arXiv 1901.09335).
    The number of steps per epoch does not change, so an epoch has 1/N of the distinct images.
    0 or 1: no repetition."""
    reprob: Annotated[float, Fraction, CLASSIFICATION] = 0.0
    """Probability of random erasing."""
    mixup: Annotated[float, NotNegative, CLASSIFICATION] = 0.0
    """Mixup alpha (0.2 in the paper); 0 disables it."""
    cutmix: Annotated[float, NotNegative, CLASSIFICATION] = 0.0
    """CutMix alpha (1.0 in the paper); 0 disables it. With both, each batch uses one of the two."""
    cutmix_minmax: Annotated[tuple[float, float] | None, Fraction, CLASSIFICATION] = None
    """Smallest and largest side of CutMix's box relative to the image's, instead of --cutmix."""
    mixup_prob: Annotated[float, Fraction, CLASSIFICATION] = 1.0
    """Probability of Mixup or CutMix, if enabled."""
    mixup_switch_prob: Annotated[float, Fraction, CLASSIFICATION] = 0.5
    """Probability of CutMix if both are enabled."""
    mixup_mode: Annotated[Literal["batch", "pair", "elem"], CLASSIFICATION] = "batch"
    """How often Mixup and CutMix draw their parameters: per batch (of a process), pair of images, or image (elem)."""
    mixup_off_epoch: Annotated[int, NotNegative, CLASSIFICATION] = 0
    """Epoch, counted from 0, from which Mixup and CutMix are off; 0 for never."""


@dataclass(frozen=True)
class LabelSettings:
    """The loss with the labels, for both networks."""

    smoothing: Annotated[float, Range(low=0, high=0.99)] = DEFAULT.smoothing
    """Label smoothing of the cross-entropy terms (0 in the paper)."""
    class_weights: Annotated[tuple[float, ...] | Literal["auto", "effective_num"], NotNegative] = ()
    """Weight of each class in the order of the labels; equal by default.
    With --bce-loss they also scale the loss, as in timm, so give weights with a mean of 1.
    auto: inversely proportional to the number of training images (segmentation: pixels).
    effective_num: by the effective number of samples (arXiv 1901.05555)."""
    noisy_labels: bool = False
    """For data with wrong labels: multiply the loss of each image (or pixel) by the trust in its label.
    Trust is the probability of the label divided by that of the predicted class, both means over the two networks.
    The factor changes linearly from 1 to the trust during the first half of the run."""
    bce_loss: Annotated[bool, CLASSIFICATION] = False
    """timm's binary cross-entropy instead of cross-entropy."""
    bce_sum: Annotated[bool, CLASSIFICATION] = False
    """--bce-loss: sum over the classes instead of the mean."""
    bce_target_thresh: Annotated[float | None, Fraction, CLASSIFICATION] = None
    """--bce-loss: targets above this become 1, the others 0 (such as 0.2 with Mixup and CutMix)."""
    bce_pos_weight: Annotated[float | None, Positive, CLASSIFICATION] = None
    """--bce-loss: weight of the positive term."""


@dataclass(frozen=True)
class FitSettings:
    """How images are fitted to the network; by default as the model's own configuration says."""

    img_size: Annotated[tuple[int, ...] | None, SIDES, Range(low=8, high=4096)] = None
    """Side of the network's input if it is square, or its height and width, in pixels."""
    crop_pct: Annotated[float | None, Range(above=0, high=1)] = None
    """Fraction of the resized image's side that the centre crop keeps."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """center: resize and crop to fill the input. squash: resize both sides. border: resize to fit, fill the rest."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resizing filter."""
    use_train_size: bool = False
    """Use the image size and crop of training, for timm models with different test settings."""

    def given(self) -> dict[str, Any]:
        """Return the settings that were given, by timm's names."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


@dataclass(frozen=True)
class ScoredDataSettings(DataSettings):
    """Where the images that are scored come from; by default from the data of the run."""

    dataset: Annotated[str, LOCAL] = OWN_DATA
    """A dataset, as for training. auto: the run's, or the included sample for models without a run."""
    val_fraction: Annotated[float | None, Range(low=0, high=0.9)] = None  # type: ignore[assignment]
    """Fraction of the training split that is scored if there is no validation split; by default the run's, or 0.1."""
    train_num_samples: Annotated[int | None, Count, Suppress] = None
    train_split: str | None = None
    """Split of which a part is scored if there is no validation split; by default train, training or the only one."""
    val_split: str | None = None
    """Split to score; by default the first of validation, val, valid, dev, test and testing that has labels."""
    data_mode: Literal["auto", "memory", "stream"] = "auto"
    """memory: decode once, keep as uint8. stream: decode in workers. auto: memory if it fits."""
    workers: Annotated[int, arg(aliases=["-j"]), NotNegative, PRIVATE] = 2
    """Worker processes that decode images for each process when streaming."""
    bad_images: Literal["stop", "skip"] | None = None  # type: ignore[assignment]
    """Unreadable images, as for training; by default as in the run, or stop."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What `validate.py` measures."""

    model: Annotated[str, arg(aliases=["-m"])]
    """Folder of a run or of an exported student, or any timm name with weights (also `hf-hub:OWNER/NAME`)."""
    data: ScoredDataSettings = field(default_factory=ScoredDataSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    batch_size: Annotated[int | None, arg(aliases=["-b"]), Count] = None
    """Images per batch; by default 256, and 16 in segmentation."""
    amp: bool = False
    """Mixed precision on hardware that supports it natively."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Data type of --amp."""
    threads: Annotated[int | None, Count] = None
    """CPU threads; by default OMP_NUM_THREADS, or all cores."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip: mean of the logits of each image and of its mirror image."""
    corruptions: bool = False
    """Also score noisy, blurred, brighter, low-contrast, JPEG-compressed and pixelated images at 5 severities."""
    pictures: bool = False
    """Also write a reliability diagram and a picture of the confusion matrix."""
    output: str | None = None
    """Folder for evaluation.json, per_class.csv and confusion.csv; FILE.json: evaluation.json alone.
    The default is evaluation-DATASET in the run's folder, followed by the given settings that change the scores.
    For models without a run, nothing is written by default."""


@dataclass(frozen=True)
class HeldOut:
    """The images that a run held out of its training split."""

    split: str
    images: int | None  # of the whole split then; None if unknown
