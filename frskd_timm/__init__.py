"""Feature refinement via self-knowledge distillation (FRSKD, arXiv 2103.08273) for timm backbones.

Importing this package only registers its students with timm: `timm.create_model('resnet18_frskd')`.
The parts that train or export a student are imported on first access.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from frskd_timm import models as models

if TYPE_CHECKING:
    from frskd_timm.errors import UserError
    from frskd_timm.export.load import load_student
    from frskd_timm.export.student import export_student
    from frskd_timm.task import FRSKDTask
    from frskd_timm.teachers import create_self_teacher

__all__ = ["FRSKDTask", "UserError", "__version__", "create_self_teacher", "export_student", "load_student"]

try:
    __version__ = version("frskd-timm")  # written in pyproject.toml
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

_HOME_OF = {
    "FRSKDTask": "frskd_timm.task",
    "UserError": "frskd_timm.errors",
    "create_self_teacher": "frskd_timm.teachers",
    "export_student": "frskd_timm.export.student",
    "load_student": "frskd_timm.export.load",
}
_MODULES = "augment", "export", "gates", "losses", "pixels", "pyramid", "schedule", "segmentation", "teachers"


if not TYPE_CHECKING:  # or every name would exist for type checkers

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "models"})
