"""Segmentation, library side: the authors' numbers, losses, any backbone and any size."""

import re
from functools import partial
from typing import Any

import pytest
import timm
import torch
from golden_names import assert_close, part, read, renamed
from PIL import Image
from torch import Tensor

import frskd_timm  # noqa: F401 registers the students
from frskd_timm.errors import UserError
from frskd_timm.losses.labels import LabelLoss
from frskd_timm.segmentation import (
    SegmentationCrossEntropyTask,
    SegmentationStudent,
    SegmentationTask,
    create_segmentation_student,
)
from frskd_timm.segmentation.decoder import FeaturePyramid

SMALL = "mobilenetv3_small_050"


# --- The authors' numbers --------------------------------------------------------------------------------------------

_BLOCKS = {"conv6": "student.pyramid.coarser.0", "conv7": "student.pyramid.coarser.1"} | {
    name: f"student.pyramid.lateral.{level}"
    for level, name in enumerate(("latlayer3", "latlayer2", "latlayer1", "toplayer"))
}
_HEADS = {"classifier1": "student.head", "classifier2": "self_teacher.head"}


def ours(name: str) -> str:
    """Return our name for a parameter of the authors' decoder."""
    layer = re.match(r"BiFPN(\d)\.(\d)\.conv(\d)(up|dw)\.(.*)", name)
    if layer:
        network, number, level, way, rest = layer.groups()
        owner = {"1": "student", "2": "self_teacher"}[network]
        block = f"up.{int(level) - 2}" if way == "up" else f"down.{int(level) - 3}"
        return f"{owner}.bifpn.{number}.{block}.{rest}"
    first, rest = name.split(".", 1)
    return f"{(_BLOCKS | _HEADS)[first]}.{rest}"


def golden_task(golden: dict[str, Tensor]) -> SegmentationTask:
    """Create the golden decoder; the maps of the backbone come from the file."""
    student: Any = SegmentationStudent("resnet10t", 21, channels=8)
    student.pyramid = FeaturePyramid([6, 10, 12, 16], 8)
    student.backbone = torch.nn.Identity()
    student.backbone_maps = lambda images: [golden[f"input.p{level}"].to(images.dtype) for level in range(2, 6)]
    weights: dict[str, float] = {
        "alpha": 1.0,
        "beta": 50.0,
        "temperature": 1.0,
        "smoothing": 0.0,
        "student_weight": 1.0,
        "teacher_weight": 1.0,
    }
    task = SegmentationTask.create(student, self_teacher="sum", teacher_repeats=2, schedule="constant", **weights)
    # The authors' code compares all pixels, also those without a label.
    task._labelled = lambda target: torch.ones_like(target, dtype=torch.bool)  # type: ignore[method-assign]
    state = {key: value for key, value in part(golden, "state").items() if not key.startswith("smooth")}  # never used
    task.load_state_dict(renamed(state, ours))
    return task


@pytest.mark.golden
def test_golden() -> None:
    """Features, logits, losses and gradients of one training step.

    A normalisation cancels the scale and shift of its input, so gradients of per-channel weights before it are zero but
    for rounding errors, here those of the file, which is in float32 (`noise`).
    """
    golden = read("segmentation")
    task = golden_task(golden).double().eval()
    images, target = torch.zeros(2, 3, 64, 64, dtype=torch.float64), golden["label"]
    for name, logits in task.predict(images).items():
        assert_close(logits[..., ::4, ::4], golden[f"eval.logits.{name.removeprefix('self_')}"], 1e-5, name)

    task.train()
    caught: dict[str, list[Tensor]] = {}
    task.self_teacher.register_forward_hook(lambda _, args, out: caught.update(student=args[0], teacher=out[0]))
    result = task(images, target)
    for kind, maps in caught.items():
        for level, map_ in enumerate(maps):
            assert_close(map_, golden[f"train.{kind}.{level}"], 1e-4, f"map {level} of the {kind}")
    assert_close(result["output"][..., ::4, ::4], golden["train.logits.student"], 1e-4, "logits")
    assert_close(result["teacher_output"][..., ::4, ::4], golden["train.logits.teacher"], 1e-4, "teacher's logits")
    terms = {"ce": "ce_student", "ce_teacher": "ce_teacher", "kl": "kl", "feature": "attention"}
    for term, name in terms.items():
        weight = 50 if term == "feature" else 1
        assert_close(result[f"loss_{term}"] / weight, golden[f"train.loss.{name}"], 1e-4, term)
    assert_close(result["loss"], golden["train.loss.total"], 1e-4, "loss")

    result["loss"].backward()
    expected = renamed(part(golden, "train.grad"), ours)
    parameters = dict(task.named_parameters())
    assert set(expected) == set(parameters)
    sizes = {key: float(gradient.abs().max()) for key, gradient in expected.items()}
    noise = 2e-6 * max(sizes.values())
    assert sum(1e-3 * size > noise for size in sizes.values()) >= 70
    for key, gradient in expected.items():
        difference = float((parameters[key].grad - gradient).abs().max())
        assert difference <= max(2e-4 * sizes[key], noise), f"gradient of {key}"


# --- Losses and schedule ---------------------------------------------------------------------------------------------


def test_ignored_pixels_and_class_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True)
    target = torch.randint(0, 4, (2, 5, 6), generator=generator)
    target[0, :3] = 255
    weights = [0.5, 1.0, 2.0, 0.0]
    for chosen in (None, weights):
        weight = None if chosen is None else torch.tensor(chosen)
        expected = torch.nn.functional.cross_entropy(logits, target, weight, ignore_index=255)
        assert torch.allclose(LabelLoss(4, 0.0, chosen)(logits, target), expected)
    pixels, classes = logits.permute(0, 2, 3, 1)[target != 255], target[target != 255]
    for chosen in (None, weights):  # with smoothing, the same as for images
        loss = LabelLoss(4, 0.1, chosen)
        assert torch.allclose(loss(logits, target), loss(pixels, classes))

    # Nothing that counts: no labels at all, or only classes of weight 0.
    nothing = LabelLoss(4)(logits, torch.full_like(target, 255))
    weightless = LabelLoss(4, 0.1, weights)(logits, torch.full_like(target, 3))
    assert nothing == weightless == 0
    (nothing + weightless).backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    with pytest.raises(UserError, match="3 class weights for 4 classes"):
        SegmentationCrossEntropyTask(create_segmentation_student(SMALL, 4, channels=8), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("feature_loss", ["attention", "fitnet"])
def test_unlabelled_pixels_count_in_no_term(feature_loss: str) -> None:
    """Neither the terms of a step nor the gradients of the student depend on unlabelled pixels."""
    task = SegmentationTask.create(
        create_segmentation_student(SMALL, 4, channels=8),
        self_teacher="sum",
        feature_loss=feature_loss,
        schedule="constant",
    )
    target = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    target[:, :, 32:] = 255
    task.eval()
    outputs = task.run_networks(torch.randn(2, 3, 64, 64), task.networks)
    valid = task.valid_positions(outputs, target)
    changed = outputs._replace(
        refined=[torch.where(v[:, None], t, 9.0) for t, v in zip(outputs.refined, valid, strict=True)],
        teacher_logits=torch.where(target[:, None] == 255, 9.0, outputs.teacher_logits),
    )
    assert [int(v.sum()) for v in valid[:5]] == [2 * side * side // 2 for side in (16, 8, 4, 2)] + [2]
    assert task.feature_loss is not None
    for found in (outputs, changed):
        assert_close(task.soft_labels(found, target), task.soft_labels(outputs, target).detach(), 1e-6, "soft labels")
        distance = task.feature_loss(found.maps, found.refined, valid)
        assert_close(distance, task.feature_loss(outputs.maps, outputs.refined, valid).detach(), 1e-6, "feature loss")
    unlabelled = task(torch.randn(2, 3, 64, 64), torch.full_like(target, 255))
    assert unlabelled["loss"] == 0


def test_feature_loss_needs_a_self_teacher_that_refines() -> None:
    student = create_segmentation_student(SMALL, 4, channels=8)
    with pytest.raises(UserError, match=r"fitnet has no effect with the self-teacher pyramid, .* mixing or sum, or"):
        SegmentationTask.create(student, feature_loss="fitnet")
    with pytest.raises(UserError, match=r"teacher_repeats 3 has no effect with the self-teacher pyramid"):
        SegmentationTask.create(student, teacher_repeats=3)
    with pytest.raises(UserError, match="teacher_repeats must be at least 1, not 0"):
        SegmentationTask.create(student, self_teacher="sum", teacher_repeats=0)
    assert SegmentationTask.create(student, feature_loss="fitnet", beta=1.0).feature_loss is not None
    assert SegmentationTask.create(student).feature_loss is None
    assert SegmentationTask.create(student, self_teacher="sum").beta == 50


def test_warm_up_and_ramp() -> None:
    student = create_segmentation_student(SMALL, 4, channels=8)
    task = SegmentationTask.create(student, self_teacher="sum", start=0.5, schedule="ramp")
    images, target = torch.randn(2, 3, 40, 40), torch.randint(0, 4, (2, 40, 40))
    task.set_progress(0.49)
    early = task(images, target)
    assert early["loss_kl"] == early["loss_feature"] == 0
    assert torch.equal(early["loss"], early["loss_ce"] + early["loss_ce_teacher"])
    for progress, weight in ((0.5, 0.0067379), (0.75, 0.2865048), (1.0, 1.0)):
        task.set_progress(progress)
        assert float(task.distill_weight) == pytest.approx(weight, rel=1e-5)
    late = task(images, target)
    assert late["loss_kl"] > 0
    assert torch.allclose(late["loss"], sum(value for key, value in late.items() if key.startswith("loss_")))


# --- Any backbone, any size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        (SMALL, 4),
        ("wide_resnet16_2_frskd", 3),
        ("vit_tiny_patch16_224", 4),  # one size at all levels, images padded to multiples of 16
        pytest.param("convnext_atto", 4, marks=pytest.mark.long),
        pytest.param("hrnet_w18_small", 4, marks=pytest.mark.long),  # images padded to multiples of 32
        ("eva02_tiny_patch14_224", 4),  # 14
    ],
)
def test_any_backbone_any_size(name: str, levels: int) -> None:
    """Logits have the size of the image; every trainable parameter gets a gradient in both tasks, as DDP needs."""
    student = create_segmentation_student(name, 5, channels=8)
    assert student.num_levels == levels + 2
    paper = partial(SegmentationTask.create, self_teacher="sum")
    for create in (SegmentationTask.create, SegmentationCrossEntropyTask, paper):  # the first two freeze what they skip
        task = create(student)
        for size in ((65, 90), (33, 47)):
            task.train().zero_grad()
            result = task(torch.randn(2, 3, *size), torch.randint(0, 5, (2, *size)))
            assert result["output"].shape == (2, 5, *size)
            result["loss"].backward()
            missing = [key for key, p in task.named_parameters() if p.requires_grad and p.grad is None]
            assert not missing
        student.load_state_dict(student.state_dict(), assign=True)  # with other parameters
    assert all(p.requires_grad for p in student.bifpn.parameters())
    images = torch.randn(1, 3, 50, 70)
    task = SegmentationTask.create(student).eval()
    with torch.no_grad():
        assert torch.allclose(task.predict(images)["student"], student(images), atol=1e-5)


def test_patches_at_the_edge_are_seen() -> None:
    """ConvNeXt cuts images into patches and would leave the last rows out."""
    student = create_segmentation_student("test_convnext", 4, channels=8).eval()
    torch.manual_seed(0)
    for side in (24, 67):
        images = torch.randn(1, 3, side, side, requires_grad=True)
        maps = student.backbone_maps(student.pad(images))
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
        assert images.grad.abs().sum(dim=(0, 1, 3)).min() > 0
    multiples = {name: create_segmentation_student(name, 4, channels=8).multiple for name in (SMALL, "densenet121")}
    assert multiples == {SMALL: 1, "densenet121": 32}


def test_a_backbone_of_one_size_names_it() -> None:
    student = create_segmentation_student("levit_128s", 4, channels=8, backbone_args={"img_size": 64}).eval()
    assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 64, 64)
    with pytest.raises(UserError, match=r"64x64.*not 65x90"):
        student(torch.zeros(1, 3, 65, 90))


@pytest.mark.parametrize("chans", [1, 3])
def test_segment_takes_images_of_any_kind(chans: int) -> None:
    student = create_segmentation_student(SMALL, 4, channels=8, in_chans=chans, mean=[0.5] * chans, std=[0.2] * chans)
    student.head.eval()
    modes = [module.training for module in student.modules()]
    pixels = torch.randint(0, 256, (20, 30, 4), dtype=torch.uint8).numpy()
    opaque = student.segment(pixels[..., :3])
    assert torch.equal(student.segment(pixels), opaque)
    assert torch.equal(student.segment(Image.fromarray(pixels)), opaque)
    wide = Image.fromarray(pixels[..., 0].astype("uint16") * 257)
    assert torch.equal(student.segment(wide), student.segment(pixels[..., 0])), "16 bits are reduced to 8, not clipped"
    assert student.segment(pixels[..., 0]).shape == student.segment(pixels[..., :1]).shape == (20, 30)
    with pytest.raises(UserError, match="float64"):
        student.segment(pixels / 255)
    assert [module.training for module in student.modules()] == modes


def test_gradients_are_numbers_in_bfloat16() -> None:
    """At 64x64 the coarsest levels are single pixels."""
    task = SegmentationTask.create(create_segmentation_student(SMALL, 5)).to(memory_format=torch.channels_last)
    for _ in range(5):
        images = torch.randn(16, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            result = task(images, torch.randint(0, 5, (16, 64, 64)))
        task.zero_grad()
        result["loss"].backward()
        assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "backbone", "width"), [("efficientdet_d0", "b0", 64), ("efficientdet_d1", "b1", 88)])
def test_the_papers_students(name: str, backbone: str, width: int) -> None:
    student = create_segmentation_student(name, 21)
    info = timm.create_model(f"efficientnet_{backbone}").feature_info
    assert [info[level]["reduction"] for level in student.levels] == [4, 8, 16, 32]
    assert [lateral[0].in_channels for lateral in student.pyramid.lateral] == [24, 40, 112, 320]
    maps = student.eval().forward_features(torch.randn(1, 3, 128, 128))
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(width, size, size) for size in (32, 16, 8, 4, 2, 1)]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="timm has no model 'efficientdet_d9'"):
        create_segmentation_student("efficientdet_d9", 5)
    with pytest.raises(UserError, match="there are none for 'resnet50_frskd'"):
        create_segmentation_student("resnet50_frskd.voc", 5)
    with pytest.raises(UserError, match="no pretrained weights for 'resnet50_frskd'"):
        create_segmentation_student("resnet50_frskd", 5, pretrained=True)
    with pytest.raises(UserError, match="overhaul is for classification"):
        SegmentationTask.create(create_segmentation_student(SMALL, 5, channels=8), feature_loss="overhaul")
