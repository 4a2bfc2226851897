"""What the documents say is so."""

import dataclasses
import re
import subprocess
import sys
import typing

import pytest
import torch
from conftest import ROOT, run_script

from frskd_timm.losses import FEATURE_LOSSES
from frskd_timm.teachers import SELF_TEACHERS
from frskd_train import settings
from frskd_train.errors import SettingsError
from frskd_train.parse import fields, flag, parse_evaluation, parse_settings
from frskd_train.timm_flags import TRAIN, VALIDATE

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_ci_runs_the_readmes_test_command() -> None:
    command = re.search(r"^python3 .* -m pytest$", README, re.M).group()
    quiet = command.replace("pip install", "pip install -q")
    assert quiet in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http", "OWNER")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_of_train_py_exist(document) -> None:
    known = (
        {"--help"} | {flag(field.name) for _, field in fields()} | {flag(f"no_{field.name}") for _, field in fields()}
    )
    for line in document.read_text(encoding="utf-8").splitlines():
        if "train.py" in line:
            own = line.split("train.py", 1)[1].split("`")[0]
            for word in re.findall(r"--[a-z][a-z-]+", own):
                assert word in known, f"{document.name}: {word}"


def own_fields(group: object) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(group) if dataclasses.is_dataclass(group) else ()


@pytest.mark.parametrize(
    ("read", "table"), [(parse_settings, TRAIN), (parse_evaluation, VALIDATE)], ids=["train.py", "validate.py"]
)
def test_flags_of_timm_lead_to_flags_of_ours(read, table) -> None:
    model = ["--model", "resnet18"]
    ours = settings.Settings if table is TRAIN else settings.EvaluationSettings
    known = {flag(field.name) for group in (ours, *typing.get_type_hints(ours).values()) for field in own_fields(group)}
    for name, here in table.items():
        assert flag(name) not in known
        assert set(re.findall(r"--[a-z-]+", here)) - {"--cpu"} <= known, name
        for args in ([flag(name), "1"], [f"{flag(name)}=1"]):
            with pytest.raises(SettingsError, match=re.escape(here)):
                read([*model, *args])
    with pytest.raises(SettingsError, match=r"path/to/images.* --dataset"):
        read(["path/to/images", *model])


def test_recipes_are_known_to_the_parser() -> None:
    for recipe in sorted((ROOT / "frskd_train" / "recipes").glob("*.yaml")):
        parse_settings(["--config", str(recipe)])


def test_the_help_tells_each_feature_loss_its_weight() -> None:
    text = run_script(sys.executable, ROOT / "train.py", "--help").stdout.replace("│", " ")
    told = re.findall(r"([\d.e-]+)\s+for\s+(\w+)", text.split("--beta ")[1].split("--temperature ")[0])
    assert {name: float(beta) for beta, name in told} == {
        name: FEATURE_LOSSES.get(name).default_beta for name in FEATURE_LOSSES.names()
    }


def test_the_readmes_code_runs() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "FRSKDTask" in block)
    scope = {"images": torch.rand(2, 3, 64, 64), "target": torch.tensor([1, 2])}
    exec(code, scope)
    promised = re.search(r"# (loss, output.*)", code).group(1).split(", ")
    assert set(promised) <= set(scope["result"])


@pytest.mark.parametrize(
    ("document", "results"),
    [
        ("budgets", "budgets"),
        ("budgets", "wide_resnet16_2_muon"),
        ("budgets", "wide_resnet16_2_erasing"),
        ("budgets", "wide_resnet16_2_sgd_erasing"),
        ("budgets", "resnet18"),
        ("budgets", "resnet18_sgd"),
        ("segmentation", "scenes"),
    ],
)
def test_the_table_of_budgets_is_the_measurements(document: str, results: str) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import budgets

    text = (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8")
    assert budgets.table(budgets.read(ROOT / "benchmarks" / "results" / f"{results}.csv")) in text


def test_registered_parts_are_what_help_offers() -> None:
    """The parser reads names as text, the library registers them: both have to agree."""
    assert list(settings.SELF_TEACHERS) == SELF_TEACHERS.names()
    assert list(settings.FEATURE_LOSSES) == FEATURE_LOSSES.names()


def test_a_new_self_teacher_is_one_file(tmp_path) -> None:
    """Dropped into the folder of a copy of the package, a file is found by help and by a run."""
    import shutil

    for part in ("frskd_timm", "frskd_train", "train.py"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    (tmp_path / "frskd_timm" / "teachers" / "mean.py").write_text(
        '''"""The plainest self-teacher."""
from torch import nn

from frskd_timm.teachers import SELF_TEACHERS, SelfTeacher


@SELF_TEACHERS.register("identity_fc")
class Identity(SelfTeacher):
    def __init__(self, channels, num_classes, **options):
        super().__init__()
        self.channels = channels
        self.fc = nn.Linear(channels[-1], num_classes)

    def forward(self, features):
        return list(features), self.fc(features[-1].mean((2, 3)))
''',
        encoding="utf-8",
    )
    assert "identity_fc" in run_script(sys.executable, "train.py", "--help", cwd=tmp_path).stdout
    flags = ["--model", "test_resnet", "--self-teacher", "identity_fc", "--train-num-samples", "64", "--epochs", "1"]
    done: subprocess.CompletedProcess = run_script(
        sys.executable, "train.py", *flags, "-b", "32", "--output-dir", tmp_path / "run", cwd=tmp_path
    )
    assert "self-teacher" in done.stdout


def test_the_document_names_tests_that_exist() -> None:
    """Each promise of docs/reliability.md points at the test that holds it."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}.{test}"
