"""The figures of a run show the numbers they are given, whatever is missing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pictures import load, picture, pictures, save
from PIL import Image
from published import EVALUATION
from runs import rows

from frskd_train.data.scenes import compose, compose_splits
from frskd_train.report.answers import confusion_picture, examples_picture
from frskd_train.report.charts import Line, line_chart
from frskd_train.report.curves import curves_figure
from frskd_train.report.evaluation import Mistake
from frskd_train.report.grids import attention_picture, class_colours, segmentation_picture
from frskd_train.report.groups import Group, Run
from frskd_train.report.predictions import draw_mistakes
from frskd_train.scoring.accumulators import Confusions

KEYS = ["epoch", "lr", "loss", "loss_ce", "loss_ce_teacher", "loss_kl", "loss_feature", "loss_sla", "val_loss"]
KEYS += ["top1", "teacher_top1", "images_per_second"]
NUMBERS = st.one_of(st.floats(0, 100), st.sampled_from([None, math.nan, math.inf, 0]))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def amount(picture, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture - wanted).max(axis=2) < 12).sum()


def has_colour(picture, colour):
    return amount(picture, colour) > 100


@pytest.mark.parametrize("classes", [50, 201, 1000])
def test_a_confusion_matrix_of_many_classes(classes, tmp_path):
    found = confusion_picture(np.eye(classes), [f"class {k}" for k in range(classes)], tmp_path / "c.png")
    assert min(pixels(found).shape[:2]) >= classes


def test_a_confusion_matrix_has_the_true_classes_in_its_rows(tmp_path):
    found = pixels(confusion_picture(np.array([[0, 9], [0, 0]]), ["a", "b"], tmp_path / "c.png"))
    side = 2 * 44
    left = len(found) - 40 - side
    cells = found[40 : 40 + side, left : left + side].mean(-1)
    dark = [cells[row : row + 10, column : column + 10].mean() < 128 for row in (2, 46) for column in (2, 46)]
    assert dark == [False, True, False, False]


def test_ten_thousand_classes_need_no_matrix(tmp_path):
    classes = 10_000
    confusions = Confusions(classes)
    for shift in (0, 1, 1):
        target = torch.arange(0, classes, 50)
        confusions.add(torch.empty(0), (target + shift) % classes, target)
    names = [f"class {k}" for k in range(classes)]
    found = replace(EVALUATION, class_names=names, confusion=[*map(tuple, confusions.gather().tolist())])
    assert found.confused(1) == [(0, 1, 2)]
    assert sorted(found.confusion) == sorted([(k, k + s, s + 1) for k in range(0, classes, 50) for s in (0, 1)])
    matrix = found.confusion_matrix()
    assert matrix.shape == (1000, 1000)
    assert matrix.diagonal().sum() == matrix.sum() == 600
    assert len(found.to_json()) < 300_000
    confusion_picture(matrix, names, tmp_path / "confusion.png")


def test_curves_show_every_term_and_both_scores(tmp_path):
    scores = lambda epoch: {"top1": 80 + epoch, "teacher_top1": 82 + epoch}
    losses = lambda epoch: {"loss": 3 / epoch, "loss_ce": 2 / epoch, "loss_kl": 0.1 * epoch}
    rows = [{"epoch": epoch, **losses(epoch), **scores(epoch)} for epoch in range(1, 13)]
    full = pixels(curves_figure(rows, tmp_path / "curves.png"))
    half = full.shape[1] // 2
    for colour, side in (("#0072B2", 0), ("#009E73", 0), ("#222222", 0), ("#0072B2", 1), ("#E69F00", 1)):
        assert has_colour(full[:, side * half : (side + 1) * half], colour), (colour, side)
    for row in rows:
        del row["teacher_top1"]
    assert not has_colour(pixels(curves_figure(rows, tmp_path / "fewer.png")), "#E69F00")
    for row in rows:
        if row["epoch"] % 3:
            del row["top1"]  # --val-interval 3
    some = pixels(curves_figure(rows, tmp_path / "some.png"))
    assert amount(some[:, half:], "#0072B2") > 0.7 * amount(full[:, half:], "#0072B2")


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), NUMBERS), max_size=6))
@settings(max_examples=15, deadline=None)
def test_curves_of_whatever_there_is(tmp_path_factory, rows):
    path = curves_figure(rows, tmp_path_factory.mktemp("curves") / "curves.png")
    assert pixels(path).shape == (640, 1440, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_attention_is_where_the_maps_are_large(tmp_path, channels):
    images = np.full((2, 28, 28, channels), 128, np.uint8)
    maps = np.zeros((2, 6, 7, 7), np.float32)
    maps[:, :, :, :3] = 5.0  # the left half
    other = maps[..., ::-1]  # the right half
    picture = pixels(attention_picture(images, [maps], [other], ["one", "two"], tmp_path / "attention.png"))
    warm = picture[..., 0] - picture[..., 2] > 40
    columns = np.flatnonzero(warm.any(axis=0))
    middle = picture.shape[1] * (1 + 0.18 + 1 + 0.09) / (3 + 0.36)
    student, teacher = columns[columns < middle], columns[columns > middle]
    # both maps are lit on about half of a cell, the student's on the far side of the teacher's
    cell = picture.shape[1] / 3.4
    assert 0.3 * cell < np.ptp(student) < 0.8 * cell
    assert 0.3 * cell < np.ptp(teacher) < 0.8 * cell
    assert teacher.min() - student.max() > 0.6 * cell


def test_very_wide_images_are_drawn(tmp_path):
    images, maps = np.zeros((1, 2, 2576, 3), np.uint8), np.ones((1, 4, 1, 80), np.float32)
    attention = attention_picture(images, [maps], [maps], ["one"], tmp_path / "attention.png")
    examples = examples_picture(images, [0], np.ones((1, 2)) / 2, ["one", "two"], tmp_path / "examples.png")
    assert min(*pixels(attention).shape[:2], *pixels(examples).shape[:2]) > 0


@pytest.mark.filterwarnings("error")
def test_attention_of_a_run_that_diverged(tmp_path):
    """Infinity is drawn as the maximum and NaN as the minimum; the rest of the figure is unchanged."""
    images = np.full((1, 28, 28, 3), 128, np.uint8)
    usual = np.random.default_rng(0).random((1, 1, 7, 7), np.float32)
    diverged = usual.copy()
    usual[0, 0, 2, 3], usual[0, 0, 5, 1] = usual.max(), usual.min()
    diverged[0, 0, 2, 3], diverged[0, 0, 5, 1] = np.inf, np.nan
    all_nan = np.full((1, 8, 7, 7), np.nan, np.float32)
    wanted, found = (
        pixels(attention_picture(images, [maps], [all_nan], ["one"], tmp_path / name))
        for name, maps in (("usual.png", usual), ("diverged.png", diverged))
    )
    assert np.array_equal(wanted, found)
    assert np.ptp(wanted) > 100


def test_picture_shows_truth_and_both_networks(tmp_path: Path) -> None:
    scenes, (_, names) = compose("test", 3), compose_splits(1)
    truth = scenes.masks.astype(np.int64)
    truth[:, :7] = 255
    blank = np.zeros_like(truth)
    columns = {"truth": truth, "student": truth, "self-teacher": blank}
    columns = {name: [masks[0], masks[1][:, 20:], *masks[2:]] for name, masks in columns.items()}  # of two sizes
    first, second, *others = scenes.images.transpose(0, 2, 3, 1)
    images = [first, second[:, 20:], *others]
    path = segmentation_picture(images, columns, names, tmp_path / "segmentation.png")
    drawn = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colours = class_colours(11).astype(int)
    assert len({tuple(colour) for colour in colours}) == 11

    def share(label: int, column: int) -> float:
        width = drawn.shape[1] // 4
        part = drawn[: int(drawn.shape[0] * 0.85), column * width : (column + 1) * width]
        return float((np.abs(part - colours[label]).max(axis=-1) <= 2).mean())

    present = [label for label in range(1, 11) if (truth == label).sum() > 200]
    assert present
    for label in present:
        assert share(label, 1) == pytest.approx(share(label, 2), rel=0.1)
        assert share(label, 1) > 0.005
        assert share(label, 3) < 0.001  # edges of the image beside it


def test_powers_of_ten_beside_the_losses_are_drawn_as_formulas(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: saved.append(figure))
    curves_figure([{"epoch": number, "loss": 10.0**-number} for number in range(3)], tmp_path / "curves.png")
    labels = [label for label in saved[0].axes[0].get_yticklabels() if "$" in label.get_text()]
    assert labels
    assert all(label.get_parse_math() for label in labels)


def test_a_mistake_is_shown_with_its_own_picture(tmp_path):
    data = load(save(tmp_path / "data", train=pictures(30)))  # of which three are held out
    row = int(data.val.source.rows[-1])
    draw_mistakes(data, [Mistake(row, 0, 1, 0.9)], tmp_path / "mistakes.png")
    assert np.array_equal(pixels(tmp_path / "mistakes.png"), np.asarray(picture(row)))


def test_charts_show_the_numbers_of_the_run(whole: Path) -> None:
    group, last = Group([Run.read(whole)]), rows(whole)[-1]
    chart = group.charts()[1]
    assert chart is not None
    assert f"student {float(last['top1']):.4g}%, self-teacher {float(last['teacher_top1']):.4g}%." in chart["alt"]
    assert group.minutes == f"{json.loads((whole / 'metrics.json').read_text())['seconds'] / 60:.1f}"
    rising = line_chart("top-1", [Line("student", 0, [(1, 20.0), (2, 40.0)])])
    assert rising is not None
    assert rising["lines"][0].points == [(0.0, 100.0), (100.0, 0.0)]  # counted from the top
