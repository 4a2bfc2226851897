"""Schema of `metrics.json`, the facts about a finished run for card, tables and baselines."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from frskd_timm.errors import UserError, first_line
from frskd_train.errors import size_text
from frskd_train.settings import HeldOut

# Scores of a network by name: percent, and `loss`. None stands for a number that is not finite.
NetworkScores = Mapping[str, Any]


@dataclass(frozen=True)
class DatasetFacts:
    """The training and validation data of a run."""

    name: str
    id: str  # of the dataset on the Hub, or the name of its folder
    split: str  # of the validation images
    license: str | None
    homepage: str | None
    train_images: int
    val_images: int
    num_classes: int
    whole_split: bool  # whether the scores are for a whole split, not for a sample or held-out images
    hub_id: str | None = None  # OWNER/NAME on the Hub if `id` is another name
    held_out: bool = False  # whether the validation images were held out of the training split
    config: str | None = None  # configuration and revision of a dataset on the Hub, if not the default ones
    revision: str | None = None
    split_images: int | None = None  # of the validation split, or of the training split if they were held out of it
    fingerprint: str | None = None  # of the training and validation data

    @property
    def held_out_images(self) -> HeldOut | None:
        """The validation images, if they were held out."""
        return HeldOut(self.split, self.split_images) if self.held_out else None


@dataclass(frozen=True)
class MachineFacts:
    """The machine of the training run."""

    device: str
    name: str
    cores: int | None
    processes: int
    precision: str | None


@dataclass(frozen=True)
class SeedRuns:
    """Runs of one recipe; `runs` holds seed and score of each."""

    method: str
    runs: list[dict[str, Any]]
    mean: float
    std: float | None = None

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]], score: str, method: str) -> "SeedRuns":
        """Create it from seed and score of each run."""
        runs = [run for place, run in enumerate(runs) if run not in runs[:place]]  # a repeated run adds no evidence
        scores = [run[score] for run in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        return cls(method, [dict(run) for run in runs], statistics.mean(scores), spread)


@dataclass(frozen=True)
class InitialWeights:
    """The weights that training started from: their name without a path, and OWNER/NAME if they are on the Hub."""

    name: str
    hub_id: str | None = None
    part: str | None = None  # of the student that they are for; None for all of it


SCHEMA = 1  # of `metrics.json`


@dataclass(frozen=True)
class Metrics:
    """A finished run."""

    schema: int
    task: str
    method: str
    model: str
    architecture: str
    tag: str
    license: str | None
    dataset: DatasetFacts
    student: NetworkScores | None  # of the exported weights; None if no validation image could be read
    self_teacher: NetworkScores | None
    weights: str  # `ema` or `student`
    param_count: int
    img_size: int  # height, and width unless `img_width` is given
    epochs: int  # planned
    epoch: int  # completed
    seed: int
    seconds: float
    images_per_second: float | None
    machine: MachineFacts
    versions: dict[str, str]
    baseline: SeedRuns | None = None  # cross-entropy with the same recipe
    repeats: SeedRuns | None = None  # the same recipe with several seeds, this run included
    date: str | None = None  # of the scores, YYYY-MM-DD in UTC
    initial: InitialWeights | None = None  # None for random weights
    gmacs: float | None = None  # multiply-adds of one image, in billions; None if they could not be counted
    activations: float | None = None  # outputs of the layers for one image, in millions
    img_width: int | None = None  # if the images are not square
    by_second_head: bool = False  # whether a head beside the decoder took the place of a self-teacher of refined maps
    linear_probe: bool = False  # whether only the classifier was trained
    changes: list[str] = field(default_factory=list)  # of settings during the run, in sentences
    # Of shipped weights only.
    stored_in: str | None = None  # precision of the parameters in the weights file if not float32
    shipped_as: str | None = None  # name of the weights
    crop_pct: float | None = None
    interpolation: str | None = None
    sample: dict[str, Any] | None = None  # scores on the sample in the repository
    further: list[dict[str, Any]] = field(default_factory=list)  # on other datasets: name, `images` and scores
    corruptions: dict[str, Any] | None = None  # mean `top1` under each corruption, and number of `images`

    @property
    def classified_images(self) -> int:
        """Number of images that the accuracy is a share of; 0 if the score is no accuracy."""
        return self.dataset.val_images if self.task == "classification" else 0

    @property
    def image_shape(self) -> str:
        """Height and width of the images, such as '224x224 pixels'."""
        return size_text(self.img_size, self.img_width or self.img_size)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Metrics":
        """Create it from parsed JSON; raise TypeError for missing and unknown keys, or another schema."""
        if content["schema"] != SCHEMA:
            raise TypeError(f"its schema is {content['schema']}, not {SCHEMA}")
        runs = {"baseline": SeedRuns, "repeats": SeedRuns}
        kinds = {"dataset": DatasetFacts, "machine": MachineFacts, "initial": InitialWeights, **runs}
        parts = {name: kind(**content[name]) for name, kind in kinds.items() if content.get(name)}
        return cls(**{**content, **parts})

    def to_json(self) -> str:
        """Return the text of `metrics.json`; numbers that are not finite become null."""
        finite = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return json.dumps(finite, indent=2, ensure_ascii=False) + "\n"


def read_metrics(path: Path) -> Metrics:
    """Read a `metrics.json`; raise UserError if it cannot be read or does not follow this schema."""
    try:
        return Metrics.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not the folder of a finished run: it has no {path.name}.") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is not the metrics.json of a finished run ({first_line(error)}).") from None
