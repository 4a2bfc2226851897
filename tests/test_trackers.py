"""Runs that report to trackers, read back with the trackers' own tools."""

from pathlib import Path

import pytest
from accelerate.tracking import TensorBoardTracker
from runs import small, train_here

from frskd_train.run.checkpoint import all_checkpoints


def test_trackers_get_typed_settings_step_losses_scores_and_pictures(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trackio = pytest.importorskip("trackio")
    flags = ["--report-to", "tensorboard", "trackio", "--project", "pets", "--run-name", "first", "--log-interval", 2]
    train_here(*small(places, *flags, "--output-dir", tmp_path / "run"))

    events = accumulators.EventAccumulator(str(tmp_path / "run" / "pets"))
    events.Reload()
    assert {"loss", "top1", "step/loss_ce", "step/lr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("step/loss")] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in events.Scalars("top1")] == [6, 12]
    for picture in ("curves", "attention"):
        assert events.Images(picture)[0].encoded_image_string.startswith(b"\x89PNG")
    (settings,) = (tmp_path / "run" / "pets").rglob("hparams.yml")
    assert "\nepochs: 2\n" in settings.read_text(encoding="utf-8")

    (run,) = trackio.Api().runs("pets")
    assert run.name == "first"
    assert (run.config["epochs"], run.config["lr"], run.config["sla"]) == (2, 0.01, False)
    logged = trackio.sqlite_storage.SQLiteStorage.get_logs("pets", "first")
    assert [row["step"] for row in logged if "step/loss" in row] == [2, 4, 6, 8, 10, 12]
    scores = [event.value for event in events.Scalars("top1")]  # in single precision
    assert [row["top1"] for row in logged if "top1" in row] == pytest.approx(scores)
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == len(events.Tags()["images"])


def test_a_tracker_that_fails_does_not_end_the_run(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    calls = []

    def fail(self: TensorBoardTracker, values: dict, step: int, **_: object) -> None:
        calls.append(step)
        if "top1" in values:
            assert len(all_checkpoints(tmp_path / "run" / "checkpoints")) == 1, "the epoch is saved first"
            raise ConnectionError("the server is gone")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    train_here(*small(places, "--report-to", "tensorboard", "--log-interval", 3, "--output-dir", tmp_path / "run"))
    assert calls == [3, 6, 6]
    assert capsys.readouterr().out.count("Tracker tensorboard failed and is not used any further: the server is") == 1
    assert (tmp_path / "run" / "report.html").is_file()
