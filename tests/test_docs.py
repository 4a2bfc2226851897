"""The documentation matches the code: commands, flags, links, code blocks and tables."""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import budgets
import protocol_tables
import pytest
import timm
import torch
import yaml
from conftest import ROOT, SMALL, run_script
from PIL import Image
from tyro.conf import Suppress

from frskd_timm.gates import GATES
from frskd_timm.losses import FEATURE_LOSSES
from frskd_timm.losses.logits import LOGIT_LOSSES
from frskd_timm.schedule import SCHEDULES
from frskd_timm.segmentation import SegmentationStudent
from frskd_timm.segmentation.teacher import SEGMENTATION_TEACHERS
from frskd_timm.teachers import SELF_TEACHERS
from frskd_train import settings
from frskd_train.errors import SettingsError
from frskd_train.settings import fields, flag
from frskd_train.settings.parse import parse_evaluation, parse_settings
from frskd_train.settings.timm_flags import TRAIN, VALIDATE

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHER = {  # of accelerate launch, torchrun, srun and hf jobs
    "--flavor", "--machine_rank", "--main_process_ip", "--main_process_port", "--multi_gpu", "--nproc_per_node",
    "--mixed_precision", "--num_machines", "--num_processes", "--ntasks", "--quiet", "--secrets", "--timeout",
}  # fmt: skip
# Blocks that test_finetuning.py, test_timm.py and test_formats.py run and look into
TESTED_ELSEWHERE = ("load_digits", "RetinaNet", "create_scheduler_v2", "onnxruntime")
BLOCKS = [
    pytest.param(code, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S))
    if not any(word in code for word in TESTED_ELSEWHERE)
]
# What the tests below look for, and in how many places of all documents at least.
LINK, SCRIPT, FILE = r"\]\(([^)#]*)(?:#([^)]+))?\)", r"python ([\w/]+\.py)", r"`([\w/]+\.(?:py|yaml))`"
MODULE, COMMAND = r"python -m ((?:tools|frskd_\w+)[\w.]*)", r"\btrain\.py\b([^`\n|]*)"
FLAG, SHELL = r"(?<![\w-])--[a-z][a-z_-]+", r"(?s)```bash\n(.*?)```"
LEAST = {LINK: 90, SCRIPT: 20, FILE: 30, MODULE: 8, COMMAND: 30, FLAG: 300, SHELL: 12}
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def test_ci_runs_the_readmes_test_command() -> None:
    command = re.search(r"^python3 .* -m pytest$", README, re.M).group()
    quiet = command.replace("pip install", "pip install -q")
    assert quiet in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("pattern", LEAST)
def test_the_documents_hold_what_is_looked_for(pattern: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    assert sum(len(re.findall(pattern, text)) for text in texts) >= LEAST[pattern]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_resolve(document: Path) -> None:
    for target, anchor in re.findall(LINK, document.read_text(encoding="utf-8")):
        if ":" in target:
            assert re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[\w./@%~+-]*)?", target), f"{document.name}: {target}"
        else:
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{document.name}: {target}#{anchor}"


@each_document
def test_tables_are_rectangles(document: Path) -> None:
    text = re.sub("```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    for rule in re.finditer(r"\|(?::?-+:?\|)+", text):
        start, end = text.rfind("\n\n", 0, rule.start()) + 2, text.find("\n\n", rule.end())
        lines = [line for line in text[start:end].splitlines() if not line.startswith("<!--")]
        assert rule[0] == lines[1], f"{document.name}: {lines}"
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert cells == {lines[1].count("|")}, f"{document.name}: {lines[0]}"


def with_own_commands(document: Path) -> str:
    """The text with one line per command, without the commands of timm's scripts."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.sub("```bash.*?```", "", text, flags=re.S) if document.name == "timm.md" else text


@each_document
def test_commands_exist_and_take_the_flags_that_are_named(document: Path) -> None:
    text = with_own_commands(document)
    for script in re.findall(SCRIPT, text):
        assert (ROOT / script).exists(), f"{document.name}: {script}"
    for name in re.findall(FILE, text):
        folders = (ROOT, ROOT / "frskd_timm", ROOT / "frskd_train", ROOT / "frskd_train" / "recipes")
        example = name in ("config.yaml", "recipe.yaml")
        assert example or any((folder / name).exists() for folder in folders), f"{document.name}: {name}"
    for module in re.findall(MODULE, text):
        assert importlib.util.find_spec(module), f"{document.name}: {module}"
    train = {flag(prefix + field.name) for _, field in fields() for prefix in ("", "no_")} | {"--help"}
    for command in re.findall(COMMAND, text):
        for word in re.findall(r"--[a-z][a-z-]+", command):
            assert word in train, f"{document.name}: {word}"
    sources = [
        *(ROOT / "frskd_train" / "cli").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "tools").glob("*.py"),
    ]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    others = set(re.findall(r"\"(--[a-z-]+)\"", code))
    others |= {
        f"--{name}"
        for found in re.findall(r"(?:defaults|switches) = {(.*)}", code)
        for name in re.findall(r'"([\w-]+)":', found)
    }
    evaluation = flags_of(settings.EvaluationSettings)
    for word in re.findall(FLAG, text):
        assert word in train | evaluation | others | LAUNCHER, f"{document.name}: {word}"


@each_document
def test_commands_parse(document: Path) -> None:
    """The values of flags are allowed as well, and recipes are found by name."""
    for block in re.findall(SHELL, with_own_commands(document)):
        for line in block.splitlines():
            if found := re.search(r"(?:\b(train|validate)\.py|frskd (train|validate))(?=\s|$)([^&|]*)", line):
                read = parse_settings if "train" in found.groups() else parse_evaluation
                read(shlex.split(found[3], comments=True))


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = set(re.findall(r"[\w./-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")} | {"index.md", "MODEL_CARD.md"}


@pytest.mark.parametrize("code", BLOCKS)
def test_code_blocks_run(code: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GATES, "_builders", {name: GATES.get(name) for name in GATES.names()})  # a block adds one
    if "SegmentationStudent" in code:
        SegmentationStudent("test_resnet", num_classes=3, channels=8, layers=1).save_pretrained(tmp_path)
        code = code.replace("runs/RUN/student", str(tmp_path))
    code = re.sub("runs/RUN/(student|backbone)", str(student), code)
    code = code.replace('"runs/first"]', f'"runs/first", *{SMALL}]')
    scope: dict[str, Any] = {"image": Image.new("RGB", (40, 30)), "names": ["wren", "robin"]}
    scope |= {"images": torch.rand(2, 3, 64, 64), "masks": torch.zeros(2, 64, 64).long()}
    scope |= {"student": timm.create_model("test_resnet", num_classes=2), "device": torch.device("cpu"), "epochs": 1}
    scope["loader"] = scope["val_loader"] = [(scope["images"], torch.tensor([0, 1]))]
    exec(code, scope)
    assert ("runs/first" in code) == (tmp_path / "runs" / "first" / "student").exists()
    if "pyramid.sizes" in code:
        assert f"pyramid.sizes  # {(scope['task'].pyramid.channels, scope['task'].pyramid.sizes)}\n" in code


def flags_of(group: type) -> set[str]:
    return {flag(name) for name, facts in settings.declared(group).items() if Suppress not in facts}


@pytest.mark.parametrize(
    ("read", "table"), [(parse_settings, TRAIN), (parse_evaluation, VALIDATE)], ids=["train.py", "validate.py"]
)
def test_timm_flags_are_answered_with_flags_that_exist(read, table) -> None:
    model = ["--model", "resnet18"]
    ours = settings.Settings if table is TRAIN else settings.EvaluationSettings
    known = flags_of(ours)
    for name, here in table.items():
        assert flag(name) not in known
        elsewhere = {"--cpu", "--tta"}  # of accelerate, and of validate.py
        assert set(re.findall(r"--[a-z-]+", here)) - elsewhere <= known, name
        for args in ([flag(name), "1"], [f"{flag(name)}=1"]):
            with pytest.raises(SettingsError, match=re.escape(here.removeprefix("none: "))):
                read([*model, *args])
    with pytest.raises(SettingsError, match=r"path/to/images.* --dataset"):
        read(["path/to/images", *model])


def test_descriptions_of_settings_break_after_sentences() -> None:
    """The help starts a new line wherever a description does."""
    for path in (ROOT / "frskd_train" / "settings" / name for name in ("data.py", "model.py", "training.py")):
        for lines in re.findall(r'^    """(.*?)"""$', path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            assert all(line.endswith(".") for line in lines.split("\n")), (path.name, lines)


def test_help_states_the_weight_of_each_feature_loss() -> None:
    text = run_script(sys.executable, ROOT / "train.py", "--help").stdout.replace("│", " ")
    told = re.findall(r"([\d.e-]+)\s+for\s+(\w+)", text.split("--beta ")[1].split("--temperature ")[0])
    assert {name: float(beta) for beta, name in told} == {
        name: FEATURE_LOSSES.get(name).default_beta for name in FEATURE_LOSSES.names()
    }


def test_the_tables_of_the_protocol_show_its_results() -> None:
    rows, times = (budgets.read(ROOT / "benchmarks" / "results" / f"{name}.csv") for name in ("protocol", "times"))
    text = budgets.DOCUMENT.read_text(encoding="utf-8")
    found = list(protocol_tables.comparisons(rows, times))
    assert f"{budgets.BEGIN}\n{protocol_tables.table(found)}\n<!-- end -->" in text
    assert f"{budgets.BEGIN}\n{protocol_tables.short_table(found)}\n<!-- end -->" in README
    assert f"{budgets.BEGIN_SPOILT}\n{protocol_tables.spoilt_table(rows)}\n<!-- end -->" in text


def test_help_offers_what_is_registered() -> None:
    """The parser lists names as text and the library registers them: both have to agree."""
    teachers = {"classification": SELF_TEACHERS, "segmentation": SEGMENTATION_TEACHERS}
    assert {task: list(names) for task, names in settings.model.SELF_TEACHERS.items()} == {
        task: registry.names() for task, registry in teachers.items()
    }
    assert list(settings.model.FEATURE_LOSSES) == FEATURE_LOSSES.names()
    assert list(settings.model.LOGIT_LOSSES) == LOGIT_LOSSES.names()
    assert list(settings.model.GATES) == ["none", *GATES.names()]
    assert list(settings.model.SCHEDULES) == SCHEDULES.names()


@pytest.mark.long
def test_a_new_self_teacher_is_one_file(tmp_path) -> None:
    """Help and a run find a file that is added to a copy of the package."""
    for part in ("frskd_timm", "frskd_train", "train.py"):
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
    (tmp_path / "frskd_timm" / "teachers" / "mean.py").write_text(
        '''"""A minimal self-teacher."""
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
    done = run_script(sys.executable, "train.py", *flags, "-b", "32", "--output-dir", tmp_path / "run", cwd=tmp_path)
    assert "self-teacher" in done.stdout


def test_each_guarantee_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}.{test}"
