"""The datasets of the protocol, created where they are not there yet."""

from functools import partial
from pathlib import Path
from typing import Any

from protocol import Case

from tools.whole import whole

IDX = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
HELD_OUT = 0.2  # fraction of the training images for tuning
WRONG = 0.4  # fraction of the labels that are wrong
RAREST = 0.05  # number of images of the rarest class relative to the most frequent one


def find_dataset(case: Case, split: str, folder: Path, rehearsal: bool = False) -> str:
    """Return the value of `--dataset` for a case; create the dataset below `folder` if it is not there yet."""
    from frskd_train.data.source import find_source
    from frskd_train.settings import DataSettings

    plain = plain_dataset(case.dataset, folder, rehearsal)
    if split == "test" and not case.spoilt:
        return plain
    path = folder / f"{case.dataset}{case.spoilt and '_'}{case.spoilt}_{split}"
    if not path.exists():
        import datasets

        splits = find_source(DataSettings(dataset=plain)).splits
        train, val = splits["train"], splits["test"]
        if split == "tuning":
            stratify = {} if case.is_dense else {"stratify_by_column": "label"}
            train, val = train.train_test_split(HELD_OUT, seed=0, **stratify).values()
        if case.spoilt:
            train = SPOILT[case.spoilt](train)
        with whole(path) as place:
            datasets.DatasetDict(train=train, validation=val).save_to_disk(place)
    return str(path)


def plain_dataset(name: str, folder: Path, rehearsal: bool = False) -> str:
    """Return the value of `--dataset` for a dataset by its name; create it below `folder` if it is not there yet."""
    from tools import make_sample, typeface_words, typefaces

    if name == "fashion_mnist_scenes" or (name == "fashion_mnist" and rehearsal):
        return name if name != "fashion_mnist" else "fashion_mnist_sample"
    tiny: dict[str, int] = {"classes": 4, "train": 10, "test": 5} if rehearsal else {}
    skip = tiny.get("classes", 100)
    words = {"train": 10, "test": 5, "photo": 5} if rehearsal else {"train": 250, "test": 25, "photo": 25}
    makers: dict[str, Any] = {
        "typefaces": partial(typefaces.write, **tiny),
        "typefaces_2": partial(typefaces.write, skip=skip, **tiny),
        "reading": partial(typefaces.write, by_word=True, **tiny),
        "typefaces_224": partial(typefaces.write, size=224, **tiny),
        "typeface_words_128_250": partial(  # not the data of the recipes, which are larger
            typeface_words.write, classes=tiny.get("classes", 200), counts=words, size=64 if rehearsal else 128
        ),
        "fashion_mnist": lambda path: make_sample.main(["--idx-dir", str(IDX), "--full", str(path)]),
    }
    path = folder / name
    if not path.exists():
        makers[name](path)
    return str(path)


def find_weights(case: Case, folder: Path, rehearsal: bool = False) -> list[str]:
    """Return the flags of `train.py` for the initial weights of a case, which are created below `folder` if needed."""
    if not case.is_pretrained or rehearsal:
        return []
    from tools import imagenet_weights

    path = folder / f"{imagenet_weights.MODEL}.safetensors"
    if not path.exists():
        imagenet_weights.write(path)
    return ["--initial-checkpoint", str(path)]


def with_wrong_labels(train: Any) -> Any:
    """Return the images that `tools.make_sample` chooses, 400 of each class, 40% of them with another class's label."""
    import numpy as np

    feature = train.features["label"]
    train = _sample(train)
    labels, rng = np.array(train["label"]), np.random.default_rng(0)
    wrong = rng.permutation(len(labels))[: round(WRONG * len(labels))]
    labels[wrong] = (labels[wrong] + rng.integers(1, feature.num_classes, len(wrong))) % feature.num_classes
    return train.remove_columns("label").add_column("label", labels).cast_column("label", feature)


def imbalanced(train: Any) -> Any:
    """Return images that `tools.make_sample` chooses: 400 of the first class, then fewer and fewer, 20 of the last."""
    import numpy as np

    train = _sample(train)
    labels, last = np.array(train["label"]), train.features["label"].num_classes - 1
    kept = [np.flatnonzero(labels == k)[: round(400 * RAREST ** (k / last))] for k in range(last + 1)]
    return train.select(sorted(np.concatenate(kept)))


def _sample(train: Any) -> Any:
    import numpy as np

    from tools.make_sample import PER_CLASS, choose_rows

    return train.select(choose_rows(np.array(train["label"]), PER_CLASS["train"], "frskd fashion-mnist train"))


SPOILT = {"wrong": with_wrong_labels, "imbalanced": imbalanced}
