"""Data flows one way: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# Each part of the library with the parts that it may import; the order is from the leaves up.
LIBRARY = {
    "errors": set(),
    "registry": {"errors"},
    "schedule": {"errors"},
    "augment": set(),
    "lookup": {"errors"},
    "models": {"errors"},
    "teachers": {"registry"},
    "losses": {"registry", "teachers"},  # the interface of a self-teacher, which some losses read
    "pyramid": {"errors", "preactivation"},
    "preactivation": {"errors"},
    "task": {"augment", "errors", "losses", "pyramid", "schedule", "teachers"},
    "segmentation": {"errors", "lookup", "losses", "schedule", "task", "models", "pyramid", "registry", "teachers"},
    "export": {"errors", "models", "segmentation"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "frskd_timm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_imports_downwards(path: Path) -> None:
    part = path.relative_to(ROOT / "frskd_timm").parts[0].removesuffix(".py")
    for name in imports(path):
        assert not name.startswith("frskd_train"), f"{path.name} imports the trainer"
        if name.startswith("frskd_timm.") and part != "__init__":
            other = name.split(".")[1]
            assert other == part or other in LIBRARY[part], f"{part} imports {other}"


def test_settings_and_parsing_need_no_torch() -> None:
    for name in ("settings", "constraints", "timm_flags", "parse", "errors", "distributed", "__init__"):
        for module in imports(ROOT / "frskd_train" / f"{name}.py"):
            top = module.split(".")[0]
            assert top not in {"timm", "accelerate", "datasets", "frskd_timm"}, f"{name} imports {module}"
            assert top != "torch" or module.startswith("torch.distributed"), f"{name} imports {module}"  # in a function


def test_the_loop_is_readable_in_one_sitting() -> None:
    assert len((ROOT / "frskd_train" / "trainer.py").read_text(encoding="utf-8").splitlines()) <= 300
    for path in [*(ROOT / "frskd_timm").rglob("*.py"), *(ROOT / "frskd_train").rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
