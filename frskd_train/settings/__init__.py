"""All settings of a training run: typed, grouped, and documented where they are declared.

A setting is a flag (`--batch-size 64`), a key of a recipe (`batch_size: 64`) and a line of a run's `config.yaml`.
Names follow timm's `train.py`. The annotation of a setting also contains its bounds, the task it belongs to, whether it
may change when a run is resumed, and whether it is published (`frskd_train.settings.constraints.Fact`).
This package imports neither torch nor timm, so that `--help` and wrong flags answer immediately.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from frskd_train.settings.constraints import CLASSIFICATION, SEGMENTATION, SIDES
from frskd_train.settings.data import OWN_DATA as OWN_DATA
from frskd_train.settings.data import DataSettings, LabelSettings, PreprocessingSettings
from frskd_train.settings.data import EvaluationSettings as EvaluationSettings
from frskd_train.settings.data import FitSettings as FitSettings
from frskd_train.settings.data import HeldOut as HeldOut
from frskd_train.settings.data import ScoredDataSettings as ScoredDataSettings
from frskd_train.settings.library import SEGMENTATION_DEFAULT
from frskd_train.settings.model import MethodSettings, ModelSettings, SegmentationSettings
from frskd_train.settings.training import LoopSettings, OptimizerSettings, RunSettings
from frskd_train.settings.training import decay_rate as decay_rate


@dataclass(frozen=True)
class Settings:
    """All settings of one run, group by group."""

    model: ModelSettings = field(default_factory=ModelSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    data: DataSettings = field(default_factory=DataSettings)
    preprocessing: PreprocessingSettings = field(default_factory=PreprocessingSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    run: RunSettings = field(default_factory=RunSettings)


def default_settings(task: str = "classification") -> Settings:
    """Return the defaults of a task: the included data, on a CPU, in a few minutes."""
    if task != "segmentation":
        return Settings()
    default, names = SEGMENTATION_DEFAULT, [field.name for field in dataclasses.fields(MethodSettings)]
    return Settings(
        model=ModelSettings(task="segmentation", model="resnet10t"),
        method=MethodSettings(**{name: getattr(default, name) for name in names if hasattr(default, name)}),
        data=DataSettings(dataset="fashion_mnist_scenes"),
        labels=LabelSettings(smoothing=default.smoothing),
        optimizer=OptimizerSettings(opt="adamw", lr=5e-3, weight_decay=0.05, epochs=20, warmup_epochs=0.5),
        loop=LoopSettings(batch_size=16),
    )


def fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield every setting as (attribute of its group, field)."""
    for group in dataclasses.fields(Settings):
        for setting in dataclasses.fields(typing.cast(Any, group.type)):
            yield group.name, setting


def flat(settings: Settings) -> dict[str, Any]:
    """Return every setting by its name, as plain YAML values; the side of a square is a number."""
    values = {setting.name: getattr(getattr(settings, group), setting.name) for group, setting in fields()}
    squares = {name for name, facts in declared(Settings).items() if SIDES in facts and len(values[name] or ()) == 1}
    values |= {name: values[name][0] for name in squares}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def flag(name: str) -> str:
    """Return the flag of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def declared(group: type) -> dict[str, tuple[Any, ...]]:
    """Return the declarations of each setting besides its type, by name, in a group and in the groups within it."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in typing.get_type_hints(group, include_extras=True).items():
        is_group = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        found |= declared(hint) if is_group else {name: getattr(hint, "__metadata__", ())}
    return found


def kinds(group: type) -> dict[str, set[Any]]:
    """Return the types that the value of each setting may have, by name, in a group and in the groups within it.

    tuple stands for any tuple, and Literal for any choice.
    """
    found: dict[str, set[Any]] = {}
    for name, hint in typing.get_type_hints(group).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= kinds(hint)
        else:
            parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
            found[name] = {typing.get_origin(part) or part for part in parts}
    return found


def foreign(task: str) -> list[str]:
    """Return the settings that belong only to another task."""
    other = SEGMENTATION if task == "classification" else CLASSIFICATION
    return [name for name, facts in declared(Settings).items() if other in facts]
