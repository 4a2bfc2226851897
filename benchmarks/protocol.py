"""The protocol of `budgets.py`: cases, methods, and which runs they make."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

COLUMNS = (
    "data", "split", "method", "epochs", "seed", "score", "ece", "self_teacher_score", "seconds_per_epoch", "flags",
    "commit",
)  # fmt: skip
Row = Mapping[str, str]
TIME_COLUMNS = ("data", "method", "ratio", "lowest", "highest", "rounds", "flags", "machine", "commit")


@dataclass(frozen=True)
class Case:
    """A recipe on some data.

    Attributes:
        title: Name in tables.
        dataset: Name of the dataset.
        epochs: Numbers of epochs.
        flags: Flags of `train.py`.
        spoilt: Key in `protocol_data.SPOILT` of the change to the training images, if any.
        rivals: Cases with the same data and another augmentation, whose baselines count too.
        is_pretrained: Whether the student starts from ImageNet weights.
    """

    title: str
    dataset: str
    epochs: tuple[int, ...]
    flags: str
    spoilt: str = ""
    rivals: tuple[str, ...] = ()
    is_pretrained: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether the task is segmentation."""
        return "--task segmentation" in self.flags

    @property
    def variant(self) -> str:
        """What distinguishes it from its rivals: the last part of the title."""
        return self.title.rpartition(", ")[2]


_TYPEFACES = "--model resnet18_frskd --img-size 64 --opt sgd --lr 0.05 --weight-decay 5e-4 --batch-size 32 --hflip 0"
_GARMENTS = "--model wide_resnet16_2_frskd --opt sgd --lr 0.1 --weight-decay 5e-4 --batch-size 64"
_FEW = "--train-num-samples 4000"
_ERASING = "--crop-padding 2 --reprob 0.25"
_MUON = "--opt nmuon --lr 3e-3 --weight-decay 0.05"
_ADAMW = "--opt adamw --lr 4e-3 --weight-decay 0.05"
_LITE = f"--model tf_efficientnet_lite0 --img-size 64 --batch-size 32 --hflip 0 {_ADAMW}"
_ALL = f"--batch-size 128 {_ERASING}"
CASES = {
    "typefaces": Case("100 typefaces", "typefaces", (30,), _TYPEFACES),
    "typefaces_2": Case("100 other typefaces", "typefaces_2", (30,), _TYPEFACES),
    "typefaces_muon": Case("100 typefaces, Muon", "typefaces", (30,), f"{_TYPEFACES} {_MUON}"),
    "typefaces_2_muon": Case("100 other typefaces, Muon", "typefaces_2", (30,), f"{_TYPEFACES} {_MUON}"),
    "typefaces_imagenet": Case("100 typefaces, ImageNet weights", "typefaces", (20,), _LITE, is_pretrained=True),
    "typefaces_2_imagenet": Case(
        "100 other typefaces, ImageNet weights", "typefaces_2", (20,), _LITE, is_pretrained=True
    ),
    "reading": Case("100 words in unseen typefaces, Muon", "reading", (30,), f"{_TYPEFACES} {_MUON}"),
    "sgd": Case(
        "Fashion-MNIST, 4,000 images, SGD, crops",
        "fashion_mnist",
        (10, 20, 40),
        f"{_GARMENTS} {_FEW}",
        rivals=("uncropped",),
    ),
    "uncropped": Case(
        "Fashion-MNIST, 4,000 images, SGD, no crops",
        "fashion_mnist",
        (10, 20),
        f"{_GARMENTS} {_FEW} --crop-padding 0",
        rivals=("sgd",),
    ),
    "muon": Case(
        "Fashion-MNIST, 4,000 images, Muon and erasing",
        "fashion_mnist",
        (30,),
        f"{_GARMENTS} {_FEW} {_ERASING} {_MUON}",
    ),
    "wrong": Case(
        "Fashion-MNIST, 4,000 images, 40% wrong labels, without --noisy-labels",
        "fashion_mnist",
        (10, 30),
        _GARMENTS,
        spoilt="wrong",
        rivals=("noisy_labels",),
    ),
    "noisy_labels": Case(
        "Fashion-MNIST, 4,000 images, 40% wrong labels, --noisy-labels",
        "fashion_mnist",
        (10, 30),
        f"{_GARMENTS} --noisy-labels",
        spoilt="wrong",
        rivals=("wrong",),
    ),
    "imbalanced": Case(
        "Fashion-MNIST, 400 down to 20 images per class", "fashion_mnist", (20,), _GARMENTS, spoilt="imbalanced"
    ),
    "scenes": Case("scenes, segmentation", "fashion_mnist_scenes", (20, 40), "--task segmentation"),
    "full": Case("Fashion-MNIST, 60,000 images", "fashion_mnist", (30,), f"{_GARMENTS} {_ALL}"),
}
# Cases that take many hours on a CPU; gpu.py trains them.
_LARGE = (
    ("resnet18_cifar_frskd", "ResNet-18 with a 3x3 stem", ""),
    ("resnet34_frskd", "ResNet-34 at 64 px", "--img-size 64"),
    ("resnet50_frskd", "ResNet-50 at 64 px", "--img-size 64"),
)
LARGE_GARMENTS = {
    model: Case(
        f"Fashion-MNIST, 60,000 images, {title}", "fashion_mnist", (30,), f"{_GARMENTS} {_ALL} --model {model} {size}"
    )
    for model, title, size in _LARGE
}
LARGE_TYPEFACES = {
    "typefaces_224": Case(
        "100 typefaces at 224 px", "typefaces_224", (30,), f"{_TYPEFACES} --img-size 224 --train-crop-mode pad"
    )
}
ON_CPU = [*CASES]
CASES |= LARGE_GARMENTS | LARGE_TYPEFACES
# Methods by the run that measures them: a run with an average of the weights has the scores of both.
RUNS = {
    "ce": "--method ce --smoothing 0",
    "ce + smoothing": "--method ce --smoothing 0.1 --model-ema",
    "ce + mixup/cutmix": "--method ce --smoothing 0.1 --mixup 0.2 --cutmix 1",
    "ce + smoothing, lr 0.2": "--method ce --smoothing 0.1 --lr 0.2",
    "ce + class weights": "--method ce --smoothing 0.1 --class-weights auto",
}
AVERAGED = "ce + smoothing + EMA"
BASELINES = (*RUNS, AVERAGED)
TINY = "--model test_resnet --train-num-samples 30 --batch-size 15 --no-amp"


@dataclass(frozen=True)
class Run:
    """A run of the protocol, a key of the CSV."""

    data: str
    split: str
    method: str
    epochs: int
    seed: int

    @classmethod
    def of(cls, row: Row) -> "Run":
        """Return the run that a row of the CSV is about."""
        return cls(row["data"], row["split"], row["method"], int(row["epochs"]), int(row["seed"]))

    def flags(self, own: str, rehearsal: bool = False) -> str:
        """Return the flags of `train.py` that make the difference; `own` are those of a method that is no baseline."""
        case = CASES[self.data]
        return " ".join(filter(None, [case.flags, RUNS.get(self.method, own), TINY if rehearsal else ""]))


def same_time(times: Sequence[Row], run: Run) -> int | None:
    """Return the epochs of cross-entropy that take as long as the epochs of a method's run, once that is measured.

    The steps of a case cost as much as those of its rivals and those of a case with the same recipe.
    """
    own = CASES[run.data]
    cases = {*own.rivals, *(name for name, case in CASES.items() if case.flags == own.flags)}
    measured = [row for row in times if row["method"] == run.method]
    found = [row for row in measured if row["data"] == run.data] or [row for row in measured if row["data"] in cases]
    return max(run.epochs + 1, math.ceil(round(float(found[0]["ratio"]) * run.epochs, 6))) if found else None


def plan(
    rows: Sequence[Row],
    data: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    name: str = "frskd",
    split: str = "test",
    times: Sequence[Row] = (),
    epochs: int | None = None,
) -> Iterator[Run]:
    """Yield the runs that are missing, seed by seed.

    Args:
        rows: Rows of the CSV so far.
        data: Names in `CASES`.
        methods: Names in `RUNS`, and `name`.
        seeds: Seeds.
        name: Name of the method that is compared with the baselines.
        split: `test`, or `tuning` for images held out from the training images.
        times: Rows of the CSV of times; the baselines are also trained for as many epochs as take the method's time.
        epochs: Number of epochs instead of those of the case.
    """
    done = {Run.of(row) for row in rows}
    for seed, longer in itertools.product(seeds, (False, True)):
        for case, method in itertools.product(data, methods):
            for budget in (epochs,) if epochs else CASES[case].epochs:
                run = Run(case, split, method, budget, seed)
                if longer:
                    more = same_time(times, replace(run, method=name))
                    if more is None or method == name:
                        continue
                    run = replace(run, epochs=more)
                if run not in done and makes_sense(CASES[case], method):
                    yield run


def makes_sense(case: Case, method: str) -> bool:
    """Return whether a method is compared on a case."""
    flags = RUNS.get(method, "")
    if "--class-weights" in flags:
        return case.spoilt == "imbalanced"
    if "--lr" in flags:
        return case.flags.startswith(_TYPEFACES) and _MUON not in case.flags
    return not ("--mixup" in flags and (case.is_dense or "--noisy-labels" in case.flags))
