"""The JSON schema of recipes agrees with the parser."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import run_script

from frskd_train.errors import SettingsError
from frskd_train.settings import default_settings
from frskd_train.settings.parse import read_recipe
from frskd_train.settings.recipe import RECIPES, write_recipe
from frskd_train.settings.rules import check_settings


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    content = json.loads(run_script(sys.executable, "-m", "frskd_train", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_included_and_written_recipes_follow_the_schema(schema: jsonschema.Draft202012Validator) -> None:
    texts = [path.read_text(encoding="utf-8") for path in RECIPES.glob("*.yaml")]
    texts += [write_recipe(default_settings(task), "All defaults.") for task in ("classification", "segmentation")]
    for text in [*texts, "batch-size: 8\nmean: 0.5\nclass_weights: auto\nopt_kwargs: {eps: 1.0e-8}\ntag: null"]:
        schema.validate(yaml.safe_load(text))
    assert all(len(found["description"]) > 10 for found in schema.schema["properties"].values() if "$ref" not in found)


WRONG = ["lr: -1", "lr: fast", "learning_rate: 1", "sched: cosin", "scale: [0.1]", "self_teacher: fpn", "epochs: 1.5",
         "resume: auto", "img_size: [32, 32, 32]"]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_the_parser_refuses_is_marked(text: str, schema: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    assert not schema.is_valid(yaml.safe_load(text))
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises((SettingsError, SystemExit)):
        check_settings(read_recipe(str(tmp_path / "recipe.yaml")))
