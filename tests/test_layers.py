"""The structure of the packages: who imports whom, what is declared, how long files are."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

# Each part of the library with the parts that it may import, in order from the leaves up.
LIBRARY = {
    "defaults": set(),
    "errors": set(),
    "registry": {"errors"},
    "schedule": {"registry"},
    "gates": {"registry"},
    "augment": set(),
    "lookup": {"errors"},
    "pixels": set(),
    "layers": set(),
    "models": {"errors", "lookup"},
    "teachers": {"defaults", "errors", "layers", "registry"},
    "losses": {"errors", "registry", "teachers"},  # the interface of a self-teacher, which some losses read
    "probing": {"errors"},
    "pyramid": {"defaults", "errors", "probing"},
    "cost": {"probing"},
    "student_task": {"defaults", "errors", "losses"},
    "distillation": {
        *("augment", "defaults", "errors", "gates", "losses", "schedule", "student_task", "teachers"),
    },
    "task": {
        *("augment", "cost", "defaults", "distillation", "errors", "layers", "losses", "probing", "pyramid"),
        *("student_task", "teachers"),
    },
    "segmentation": {
        *("defaults", "distillation", "errors", "layers", "lookup", "losses", "models", "pixels", "probing"),
        *("pyramid", "registry", "student_task", "teachers"),
    },
    "export": {"errors", "lookup", "models", "probing", "segmentation"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the absolute name, which the rules below check"
            yield str(node.module)
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
    package = ROOT / "frskd_train"
    light = [package / name for name in ("__init__.py", "errors.py", "system/__init__.py", "system/exits.py")]
    for path in [*light, *(package / "settings").glob("*.py")]:
        for module in imports(path):
            top = module.split(".")[0]
            assert top not in {"torch", "timm", "accelerate", "datasets", "frskd_timm"}, f"{path.name} imports {module}"


@pytest.mark.parametrize("folder", ["frskd_timm", "frskd_train", "hub", "benchmarks", "tools", "tests"])
def test_files_are_short(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def test_no_two_places_share_more_than_twelve_lines() -> None:
    places: dict[tuple[str, ...], str] = {}
    for path in [path for package in ("frskd_timm", "frskd_train") for path in (ROOT / package).rglob("*.py")]:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for start in range(len(lines) - 12):
            window = tuple(lines[start : start + 13])
            assert window not in places, f"{path} repeats {places[window]}:\n{lines[start]}"
            places[window] = str(path)


# Parts of the trainer, from the bottom up; each may import those before it.
TRAINER = (
    *("errors", "settings", "data", "students", "system", "run", "optim", "report", "found_student", "scoring"),
    *("tasks", "demo", "publish", "start_of_run", "end_of_run", "trainer", "cli", "train", "__main__"),
)


@pytest.mark.parametrize("path", sorted((ROOT / "frskd_train").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_trainer_imports_downwards(path: Path) -> None:
    part = path.relative_to(ROOT / "frskd_train").parts[0].removesuffix(".py")
    for name in imports(path):
        if name.startswith("frskd_train.") and part != "__init__":
            other = name.split(".")[1]
            assert other == part or other in TRAINER[: TRAINER.index(part)], f"{part} imports {other}"


def test_no_modules_import_each_other() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("frskd_timm", "frskd_train")
        for path in (ROOT / package).rglob("*.py")
    }
    packages = {name for name, path in files.items() if path.name == "__init__.py"}  # they re-export their modules
    modules = files.keys() - packages
    TopologicalSorter({name: modules.intersection(imports(files[name])) for name in modules}).prepare()


def declared(*extras: str) -> set[str]:
    """The distributions that pyproject.toml declares for the core and some extras, in lower case with hyphens."""
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    return {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


@pytest.mark.parametrize(("package", "extras"), [("frskd_timm", ()), ("frskd_train", ("train", "onnx"))])
def test_everything_imported_is_declared(package: str, extras: tuple[str, ...]) -> None:
    known, distributions = declared(*extras), packages_distributions()
    for path in (ROOT / package).rglob("*.py"):
        for top in {name.split(".")[0] for name in imports(path)} - {"frskd_timm", "frskd_train"}:
            names = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
            assert top in sys.stdlib_module_names or names & known, f"{path}: {top} is not declared"
