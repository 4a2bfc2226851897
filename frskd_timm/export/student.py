"""A trained student to a Hub-ready folder; `exported` reads it back.

The folder holds what timm's `local-dir:` and `hf-hub:` names and transformers' `AutoModelForImageClassification` read:
`model.safetensors` and `config.json`. It holds the student alone, under an architecture name that plain timm knows
wherever one exists, and nothing that timm's default weights said about themselves.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import is_model
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_timm.export.load import CARD, CONFIG, RECIPE, WEIGHTS, refuse_nonfinite, unwrap, verify_export
from frskd_timm.models import stock_name

PAPER_NAME = "Refine Myself by Teaching Myself: Feature Refinement via Self-Knowledge Distillation"
PAPER_ID = "arXiv:2103.08273"

# What of an architecture's default cfg is about the architecture. All else there describes timm's own weights.
_ARCHITECTURE_FIELDS = ("custom_load", "fixed_input_size", "num_classes", "pool_size", "first_conv", "classifier")
_DATA_FIELDS = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def export_student(
    model: nn.Module,
    folder: str | Path,
    *,
    tag: str,
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    model_name: str | None = None,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    label_names: Sequence[str] | None = None,
    license: str | None = None,
    dataset: str | None = None,
    method: str = "frskd",
    half: bool = False,
    finish: Callable[[Path], Any] | None = None,
) -> Path:
    """Writes the student to a folder that timm and transformers load, and proves it by loading it.

    Everything is written and checked in a folder aside, which then takes the place of `folder`: an older good export
    stays whole until the new one is.

    Args:
        model: The student, any timm model; wrappers of DDP and `torch.compile` are taken off. Its mode and device
            are left as they are.
        folder: Where the export goes. What stands there already must be an older export.
        tag: Name of these weights, usually the data set's: `resnet18.<tag>`.
        input_size: Channels, height and width of an image in validation.
        mean: Mean per channel, of images in 0..1.
        std: Standard deviation per channel, of images in 0..1.
        model_name: Name under which the student was created, where its own cfg does not say it.
        interpolation: Resizing in validation: `bicubic`, `bilinear` or `nearest`.
        crop_pct: Share of the resized image that validation looks at.
        crop_mode: Where validation crops: `center`, `squash` or `border`.
        label_names: One name per class, in the order of the logits.
        license: Licence of the weights, as the Hub spells it (`mit`, `apache-2.0`).
        dataset: Readable name of the training data.
        method: `frskd`, or `ce` for a student trained without the self-teacher, which then does not name the paper.
        half: Parameters in float16; buffers (running statistics) stay float32.
        finish: Called with the folder aside when the weights in it are proven, to add card, pictures and recipe.

    Returns:
        The folder.

    Raises:
        UserError: The model is no timm model, or has keys that the plain architecture lacks, or numbers that are not
            finite; the names or sizes do not fit it; or the folder holds something else.
    """
    folder = Path(folder).resolve()
    model = unwrap(model)
    architecture = architecture_name(model, model_name)
    if label_names is not None and len(label_names) != model.num_classes:
        raise UserError(f"label_names has {len(label_names)} names, but the student has {model.num_classes} classes.")
    with replacing(folder) as aside:
        write_weights(aside, model, half=half)
        data_config = {
            "input_size": tuple(input_size),
            "mean": tuple(mean),
            "std": tuple(std),
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
        }
        facts = weights_facts(tag, license, f"Trained on {dataset}." if dataset else None, method)
        config = timm_config(model, aside / CONFIG, architecture, data_config, facts, label_names)
        if half:
            config["dtype"] = "float32"  # transformers would otherwise compute in the precision of the file
        write_json(aside / CONFIG, config)
        verify_export(aside, model, tolerance=2e-2 if half else 1e-4)
        if finish is not None:
            finish(aside)
    return folder


def write_weights(folder: Path, model: nn.Module, *, half: bool = False) -> None:
    """Writes a model's tensors as `model.safetensors`; see `plain_state_dict`."""
    save_file(plain_state_dict(model, half=half), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its owner alone


def plain_state_dict(model: nn.Module, *, half: bool = False) -> dict[str, Tensor]:
    """The model's tensors for saving: on the CPU, contiguous, unshared, float32, keys without wrapper prefixes.

    Args:
        model: The student.
        half: Parameters in float16 instead.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if half and name in parameters else torch.float32)
        plain = name.replace("_orig_mod.", "")  # compile also wraps single blocks, in the middle of a key
        state[plain] = tensor.clone(memory_format=torch.contiguous_format)
    refuse_nonfinite(state)
    return state


def architecture_name(model: nn.Module, model_name: str | None) -> str:
    """The name that plain timm, or this package, builds the model by.

    Raises:
        UserError: The model is none of timm's, or the name is unknown to it.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not hasattr(model, "num_classes") or not hasattr(model, "num_features"):
        raise UserError(f"{type(model).__name__} cannot be exported: it is not a model made by timm.create_model.")
    name = (model_name or cfg.get("architecture") or "").split(".")[0]
    if not is_model(name):
        raise UserError(f"model_name {name!r} is not known to timm: give the name that the student was created by.")
    return stock_name(name) or name


def timm_config(
    model: nn.Module,
    path: Path,
    architecture: str,
    data_config: dict[str, Any],
    facts: dict[str, Any],
    label_names: Sequence[str] | None,
) -> dict[str, Any]:
    """timm's own config for the model, with these weights' facts in place of those of timm's default weights.

    Args:
        model: The model to describe.
        path: Where timm may write its own form of it.
        architecture: Name to build it by.
        data_config: Input size and preprocessing.
        facts: See `weights_facts`.
        label_names: One name a class, if known.

    Raises:
        UserError: Sizes that contradict the model, or arguments that JSON cannot hold.
    """
    model_config = {"pretrained_cfg": {"architecture": architecture}, "label_names": list(label_names or ())}
    try:
        save_config_for_hf(model, str(path), model_config=model_config, data_config=data_config)
    except ValueError as error:  # sizes that contradict the model, arguments that JSON cannot hold
        raise UserError(f"The student cannot be described in {CONFIG}: {error}") from None
    config = json.loads(path.read_text(encoding="utf-8"))
    found = config["pretrained_cfg"]
    kept = {key: found[key] for key in (*_ARCHITECTURE_FIELDS, *_DATA_FIELDS) if key in found}
    config["pretrained_cfg"] = {key: value for key, value in facts.items() if value is not None} | kept
    # num_classes stands at the top; a second one here makes transformers pass it twice
    config.get("model_args", {}).pop("num_classes", None)
    return config


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` at the end; what stood there is lost only then.

    Raises:
        UserError: `folder` holds something else than an older export.
    """
    folder = folder.resolve()
    _refuse_foreign(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _put_in_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def weights_facts(tag: str, license: str | None, description: str | None, method: str) -> dict[str, Any]:
    """What a timm config says of the weights; one of `--method ce` does not name the paper."""
    facts: dict[str, Any] = {"tag": tag, "license": license, "description": description}
    return facts | ({"paper_name": PAPER_NAME, "paper_ids": PAPER_ID} if method == "frskd" else {})


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that people can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_foreign(folder: Path) -> None:
    """Only an empty place or an older export may be replaced: nobody's files are lost to a mistyped path."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the student.")
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    own = {WEIGHTS, CONFIG, CARD, RECIPE, "metrics.json", ".eval_results"}
    other = sorted(name for name in names - own if Path(name).suffix not in (".png", ".onnx"))
    if names and (other or CONFIG not in names):
        raise UserError(
            f"{folder} holds something else than an exported student ({', '.join(other or sorted(names))})."
        )


def _put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; what stood there goes only afterwards."""
    previous = folder.with_name(f".{folder.name}.previous")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    new.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
