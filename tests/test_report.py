"""The page about finished runs: what it shows, that it needs nothing else, and that it fits on a phone."""

import http.server
import json
import re
import shutil
import statistics
import subprocess
import threading
from functools import partial
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pytest
from pictures import encoded, picture, save, split
from published import EVALUATION
from runs import rows, small, train_here

from frskd_train import cli
from frskd_train.end_of_run import EndOfRun
from frskd_train.report.charts import Line, line_chart
from frskd_train.report.groups import Group, Run, group_runs
from frskd_train.report.page import write_report
from frskd_train.report.predictions import Predictions
from frskd_train.run.folder import RunFolder

NASTY = "<script>alert(1)</script> & \"co\" 'x'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on images of three classes, one of them with a hostile name."""
    place = tmp_path_factory.mktemp("report")
    names = datasets.ClassLabel(names=["cat", NASTY, "eel"])
    parts = {"train": 24, "test": 9}
    rows = {
        name: split([encoded(picture(k)) for k in range(count)], [k % 3 for k in range(count)], names)
        for name, count in parts.items()
    }
    save(place / "data", **rows)
    train_here(*small(place, "--output-dir", place / "run", "--seed", 1))
    return place / "run"


def changed(run: Path, copy: Path, seed: int, method: str, top1: float) -> Path:
    """Return a copy of a run as it would be with another seed, method and score."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics |= {"seed": seed, "method": method, "student": metrics["student"] | {"top1": top1}}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    recipe = copy / "student" / "recipe.yaml"
    text = re.sub("^method: .*", f"method: {method}", recipe.read_text(), flags=re.M)
    recipe.write_text(re.sub("^seed: .*", f"seed: {seed}", text, flags=re.M))
    return copy


def test_the_recipe_beside_the_weights_has_no_default_that_may_change(run: Path) -> None:
    assert "\nbeta: 100.0\n" in (run / "student" / "recipe.yaml").read_text()
    assert "beta" not in {name for name, _, _ in Group([Run.read(run)]).changed()}


def test_the_speeds_of_the_epochs_fit_the_time_of_the_run(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    epochs = [float(row["images_per_second"]) for row in rows(run)]
    images = metrics["dataset"]["train_images"]
    assert sum(images / speed for speed in epochs) <= metrics["seconds"] + 0.1
    assert min(epochs) <= metrics["images_per_second"] <= max(epochs)


def test_a_run_ends_with_a_page_that_needs_nothing_else(run: Path, tmp_path: Path) -> None:
    page = Page(run / "report.html")
    assert len(page.source) < 5_000_000
    assert "script" not in {tag for tag, _ in page.tags}
    assert NASTY in page.text
    assert escape(NASTY).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page.source
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    style = "".join(re.findall("<style>(.*?)</style>", page.source, flags=re.S))
    assert "url(" not in style
    assert "@import" not in style
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all(image.get("alt") for image in images)
    assert all(attributes.get("aria-label") for _, attributes in page.tags if attributes.get("role") == "img")
    metrics, evaluation = (json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "evaluation"))
    assert f"{metrics['student']['top1']:.2f}" in page.text
    assert 0 < len(evaluation["mistakes"]) == sum("taken for" in str(image["alt"]) for image in images)
    assert "no baseline" in page.text

    others = [
        changed(run, tmp_path / f"{method}-{seed}", seed, method, top1)
        for seed, method, top1 in ((1, "frskd", 70.0), (2, "frskd", 72.0), (1, "ce", 60.0), (2, "ce", 62.0))
    ]
    cli.run("report", [*map(str, others), "--output", str(tmp_path / "all.html")])
    text = Page(tmp_path / "all.html").text
    assert '<div class="card verdict better">' in Page(tmp_path / "all.html").source
    assert "no baseline" not in text
    assert f"71.00 ± {statistics.stdev((70, 72)):.2f}" in text
    assert "10.00 points better in top-1 than cross-entropy" in text
    assert "more than the 6.08 points" in text  # 4.30 * sqrt(2 * (1/2 + 1/2))


def test_runs_from_other_weights_are_other_recipes(run: Path, tmp_path: Path) -> None:
    folders = []
    for seed, (method, weights) in enumerate(
        (("frskd", "a/w.pth"), ("frskd", "b/w.pth"), ("ce", "b/w.pth"), ("ce", "b/w.pth"))
    ):
        folders.append(str(changed(run, tmp_path / str(seed), seed, method, 60.0 + seed)))
        for name, value in (("student/recipe.yaml", "''"), ("config.yaml", str(tmp_path / weights))):
            path = tmp_path / str(seed) / name
            path.write_text(
                re.sub("^initial_checkpoint: .*", f"initial_checkpoint: {value}", path.read_text(), flags=re.M)
            )
    cli.run("report", [*folders, "--output", str(tmp_path / "all.html")])
    text = Page(tmp_path / "all.html").text
    assert "FRSKD, initial_checkpoint a/w.pth" in text
    assert text.count("no baseline") == 1
    assert "1.50 points worse in top-1 than cross-entropy" in text


def test_what_a_student_confuses_and_how_sure_it_is(tmp_path: Path) -> None:
    shown = Predictions(EVALUATION, tmp_path)
    assert EVALUATION.confused(3) == [(0, 1, 1)]
    assert "80.0% of the images correctly with a mean confidence of 90.0%, so it is overconfident" in shown.confidence()
    assert shown.reliability()["lines"][1].points == [(90.0, 20.0)]  # counted from the top, where the accuracy is 100%


def test_a_page_that_cannot_be_made_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    end = EndOfRun(RunFolder(tmp_path), *[None] * 7)  # type: ignore[arg-type]
    assert end.write_page(None).startswith("The report could not be made")
    with pytest.raises(SystemExit, match="2"):
        cli.run("report", [str(tmp_path)])
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "metrics.json" in message


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_requests_nothing_and_needs_no_horizontal_scrolling(
    run: Path, tmp_path: Path, classes: int, width: int
) -> None:
    runs = [
        changed(run, tmp_path / f"run-{seed}", seed, "ce" if seed == 3 else "frskd", 70 + seed) for seed in (1, 2, 3)
    ]
    for copy in runs:
        evaluation = json.loads((copy / "evaluation.json").read_text())
        evaluation["class_names"] = [f"class {k} {'long' * (k % 9)}" for k in range(classes)]
        row = evaluation["per_class"][0]
        evaluation["per_class"] = [row | {"name": name, "support": 1} for name in evaluation["class_names"]]
        evaluation["confusion"] = [[i, j, (i * j) % 7 + 1] for j in range(classes) for i in range(classes)]
        (copy / "evaluation.json").write_text(json.dumps(evaluation))
    cli.run("report", [*map(str, runs), "--output", str(tmp_path / "page.html")])
    measure = "f => { const d = f.contentDocument, b = f.contentWindow.performance.getEntriesByType('resource');"
    measure += " document.title = [d.documentElement.scrollWidth, d.querySelectorAll('table').length, b.length] }"
    frame = f'<iframe src="page.html" width="{width}" style="border:0" onload="({measure})(this)"></iframe>'
    (tmp_path / "index.html").write_text(f"<!doctype html><title>none</title>{frame}")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", f"http://127.0.0.1:{server.server_port}/index.html"]
        done = subprocess.run([str(CHROMIUM), *flags], capture_output=True, text=True, timeout=120)
        server.shutdown()
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    scroll_width, tables, loaded = map(int, title[1].split(","))
    assert scroll_width <= width
    assert tables > 5
    assert loaded == 0
    assert set(asked) - {"/favicon.ico"} == {"/index.html", "/page.html"}


def test_a_run_that_has_been_continued_is_shown_as_it_was_exported(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    table = (tmp_path / "run" / "summary.csv").read_text()
    (tmp_path / "run" / "summary.csv").write_text(table + table.splitlines()[-1] + "\n")
    assert len(Run.read(tmp_path / "run").rows) == len(Run.read(run).rows)


def test_a_page_replaces_no_other_file(run: Path) -> None:
    config = run / "config.yaml"
    before = config.read_bytes()
    with pytest.raises(SystemExit):
        cli.run("report", [str(run), "--output", str(config)])
    assert config.read_bytes() == before


def test_runs_of_different_tasks_need_two_pages(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("checkpoints"))
    metrics = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps(metrics | {"task": "segmentation"}))
    with pytest.raises(SystemExit):
        cli.run("report", [str(run), str(other), "--output", str(tmp_path / "page.html")])
    assert "different tasks (classification and segmentation): make one report for each" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_where_the_page_is_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "report.html").unlink()
    cli.run("report", [str(run)])
    assert (run / "report.html").is_file()
    assert not [*tmp_path.iterdir()]
    cli.run("report", [str(run), "--output", f"{tmp_path / 'pages'}/"])
    assert (tmp_path / "pages" / "report.html").is_file()


def test_runs_on_datasets_of_one_name_have_different_labels(run: Path, tmp_path: Path) -> None:
    other = changed(run, tmp_path / "other", 1, "frskd", 60.0)
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["dataset"] |= {"train_images": 1234, "num_classes": 4}
    (other / "metrics.json").write_text(json.dumps(metrics))
    labels = {group.label for group in group_runs([Run.read(run), Run.read(other)])}
    assert labels == {
        "FRSKD, data, 3 classes, 24 training images",
        "FRSKD, data, 4 classes, 1,234 training images",
    }


def test_resumed_runs_are_seeds_of_one_recipe_unless_settings_or_data_changed(run: Path, tmp_path: Path) -> None:
    other = changed(run, tmp_path / "other", 2, "frskd", 60.0)
    recipe = other / "student" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("decay_epochs: 30.0", "decay_epochs: 30"))  # of an older version
    assert [len(group.runs) for group in group_runs([Run.read(run), Run.read(other)])] == [2]
    metrics = (other / "metrics.json").read_text()
    for change, label in (
        ({"changes": ["After 2 updates: --lr is 0.2."]}, "FRSKD, settings changed during the run"),
        ({"dataset": {**json.loads(metrics)["dataset"], "fingerprint": "0123"}}, "FRSKD, data, data 0123"),
    ):
        (other / "metrics.json").write_text(json.dumps(json.loads(metrics) | change))
        assert [group.label for group in group_runs([Run.read(run), Run.read(other)])][1] == label
    (other / "metrics.json").write_text(
        json.dumps(json.loads(metrics) | {"changes": ["After 2 updates: --lr is 0.2."]})
    )
    write_report([other, changed(run, tmp_path / "ce", 1, "ce", 50.0)], tmp_path / "page.html")
    assert (
        "Settings were changed when the run was resumed, and no baseline has the same changes"
        in Page(tmp_path / "page.html").text
    )
    baseline = {"method": "ce", "runs": [{"seed": 1, "top1": 50.0}], "mean": 50.0}
    (other / "metrics.json").write_text(json.dumps(json.loads(metrics) | {"baseline": baseline}))
    for runs in ([run, other], [other, run]):  # whichever of the seeds was given the baseline
        assert [group.baseline_scores for group in group_runs(map(Run.read, runs))] == [[50.0]]


def test_settings_of_the_method_do_not_divide_cross_entropy_runs(run: Path, tmp_path: Path) -> None:
    folders = [changed(run, tmp_path / f"ce{seed}", seed, "ce", 60.0 + seed) for seed in (1, 2)]
    recipe = folders[0] / "student" / "recipe.yaml"
    recipe.write_text(re.sub("^alpha: .*", "alpha: 4.5", recipe.read_text(), flags=re.M))
    assert [(group.label, len(group.runs)) for group in group_runs(map(Run.read, folders))] == [("cross-entropy", 2)]


@pytest.mark.parametrize("value", [0.0, 36.6667])
def test_a_constant_line_has_different_ticks(value: float) -> None:
    chart = line_chart("top-1", [Line("student", 0, [(1, value)])], unit="%")
    assert chart is not None
    texts = [text for _, text in chart["y_ticks"]]
    assert len(set(texts)) == len(texts) > 2
    assert "-0%" not in texts
