"""Training on a dataset from the Hub: the genuine `datasets` and `huggingface_hub` against a server on this machine."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import run_script
from hub_server import TOKEN, LoopbackHub

PUSH = """
import datasets
from huggingface_hub import metadata_update
from pictures import pictures

garments = datasets.DatasetDict(train=pictures(24), test=pictures(9))
garments.push_to_hub("tester/garments", private=True)
metadata_update("tester/garments", {"license": "cc-by-4.0"}, repo_type="dataset")
for config in ("small", "large"):
    garments.push_to_hub("tester/several", config_name=config)
"""

FIND = """
import json, sys
from frskd_timm.errors import UserError
from frskd_train.data.source import find_source
from frskd_train.settings import DataSettings

for dataset, config, revision in json.loads(sys.argv[1]):
    try:
        source = find_source(DataSettings(dataset, dataset_config=config, dataset_revision=revision))
        print([{split: len(rows) for split, rows in source.splits.items()}, source.license])
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackHub, dict[str, str]]]:
    """Return a Hub with two datasets, and the environment of a client that is logged in."""
    with LoopbackHub() as server:
        environment = server.environment(tmp_path_factory.mktemp("hf"), TOKEN)
        run_script(sys.executable, "-c", PUSH, PYTHONPATH=str(Path(__file__).parent), **environment)
        yield server, environment


def find(environment: dict[str, str], *cases: tuple[str, str | None, str | None]) -> list[str]:
    done = run_script(sys.executable, "-c", FIND, json.dumps(cases), **environment)
    return done.stdout.splitlines()


def test_configurations_and_revisions(published: tuple[LoopbackHub, dict[str, str]]) -> None:
    hub, environment = published
    name = "tester/several"
    _, first, _ = hub.repos[f"datasets/{name}"].history()  # when there was one configuration
    cases = [(name, "small", None), (name, None, None), (name, "medium", None), (name, "small", "v9")]
    more = [(name, None, first), ("tester/garments", None, None)]
    found, none, unknown, revision, early, private = find(environment, *cases, *more)
    assert found == "[{'train': 24, 'test': 9}, None]"
    assert private == "[{'train': 24, 'test': 9}, 'cc-by-4.0']"
    choose = "--dataset tester/several has the configurations large, small; choose one with --dataset-config."
    assert [none, unknown] == [choose, choose]
    assert "Revision 'v9' doesn't exist" in revision
    assert early == found


def test_private_datasets_need_a_login(published: tuple[LoopbackHub, dict[str, str]], tmp_path: Path) -> None:
    (refused,) = find(published[0].environment(tmp_path), ("tester/garments", None, None))
    assert "no dataset with this id could be loaded from the Hub" in refused


@pytest.mark.long
def test_training_on_a_dataset_from_the_hub(
    train, published: tuple[LoopbackHub, dict[str, str]], tmp_path: Path
) -> None:
    hub, environment = published
    flags = ["--dataset", "tester/garments", "--model", "test_resnet", "--epochs", 1, "--no-amp", "--output-dir"]
    done = train(*flags, tmp_path / "run", **environment)
    assert TOKEN not in done.stdout + done.stderr
    card = (tmp_path / "run" / "student" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["datasets"] == ["tester/garments"]
    assert "cc-by-4.0" in card
    hub.log.clear()
    train(*flags, tmp_path / "offline", **environment | {name: "1" for name in environment if name.endswith("OFFLINE")})
    assert not hub.log  # everything came from the caches
