"""An exported student read back: its config, its weights, its logits.

What the folder holds is checked against the plain architecture that its config names, so that nothing of a self-teacher
and no wrapper's prefix gets through.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from frskd_timm.errors import UserError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
RECIPE = "recipe.yaml"


def load_export(folder: str | Path) -> nn.Module:
    """The student in a folder, through timm alone, in eval mode.

    Raises:
        UserError: A file is missing or unreadable, the architecture is unknown, or the weights do not fit it.
    """
    folder = Path(folder)
    check_weights(folder)
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
        UserError: It is missing, no JSON, or no timm config.
    """
    config = read_json(Path(folder) / CONFIG)
    if not isinstance(config.get("pretrained_cfg"), dict) or "architecture" not in config:
        raise UserError(
            f"{Path(folder) / CONFIG} is not a timm config: 'architecture' and 'pretrained_cfg' are wanted."
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file of an exported student.

    Raises:
        UserError: It is missing, or holds none.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the student/ folder of a finished run.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): export the student again.") from None
    return config if isinstance(config, dict) else {}


def check_weights(folder: str | Path) -> dict[str, Tensor]:
    """The folder's weights, after making sure that they are the plain architecture's, all of them and finite.

    Raises:
        UserError: They are not; the sentence names the first keys at fault.
    """
    config = read_config(folder)
    return read_weights(Path(folder), _plain_model(config), config["architecture"])


def read_weights(folder: Path, plain: nn.Module, name: str) -> dict[str, Tensor]:
    """The folder's weights, after making sure that they fit a model, all of them and finite.

    Args:
        folder: An exported student.
        plain: The model that its config describes.
        name: What to call that model.

    Raises:
        UserError: They do not; the sentence names the first keys at fault.
    """
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the student/ folder of a finished run.") from None
    except Exception as error:  # safetensors has an exception of its own for damaged files
        raise UserError(f"{path} is damaged ({error}): export the student again.") from None
    _refuse_misfit(state, plain.state_dict(), name)
    refuse_nonfinite(state)
    return state


def verify_export(folder: str | Path, model: nn.Module, *, tolerance: float = 1e-4) -> float:
    """Loads the folder through timm's `local-dir:` and compares its logits with the model's.

    Args:
        folder: An exported student.
        model: The student that it was exported from; mode and device are left as they are.
        tolerance: Largest difference allowed, as a share of the largest logit.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: The folder does not load, or its logits differ.
    """
    model = unwrap(model)
    loaded = load_export(folder)
    return compare_logits(model, loaded, probe_images(read_config(folder)), tolerance=tolerance)


def compare_logits(model: nn.Module, other: nn.Module, images: Tensor, *, tolerance: float = 1e-4) -> float:
    """Compares what two models say of the same images, in eval mode and float32 on the first one's device.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: It exceeds `tolerance` times the largest logit, or is not a number.
    """
    parameter = next(model.parameters())
    images = images.to(parameter.device)
    other = other.to(parameter.device)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False), _eval(model), _eval(other):
        expected = model(images.to(parameter.dtype)).float()
        found = other(images).float()
    if expected.shape != found.shape:
        raise UserError(f"The exported student answers with shape {tuple(found.shape)}, not {tuple(expected.shape)}.")
    difference = (expected - found).abs().max().item() if expected.numel() else 0.0
    limit = tolerance * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    if not difference <= limit:  # also when it is NaN
        raise UserError(
            f"The exported student's logits differ from the trained one's by {difference:.3g} > {limit:.3g}."
        )
    return difference


def probe_images(config: dict[str, Any], batch: int = 2) -> Tensor:
    """The fixed input of all comparisons: normalised noise of the config's input size, (batch, C, H, W)."""
    size = tuple(config["pretrained_cfg"].get("input_size", (3, 224, 224)))
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


def unwrap(model: nn.Module) -> nn.Module:
    """The model without what DDP and `torch.compile` put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _plain_model(config: dict[str, Any]) -> nn.Module:
    """The architecture that a config names, with random weights."""
    name = config["architecture"]
    arguments = {"num_classes": config.get("num_classes"), **config.get("model_args", {})}
    try:
        return timm.create_model(name, pretrained=False, pretrained_cfg=dict(config["pretrained_cfg"]), **arguments)
    except Exception as error:  # whatever the architecture's constructor makes of arguments that do not fit
        raise UserError(f"The architecture {name!r} of {CONFIG} cannot be built: {error}") from None


def _refuse_misfit(state: dict[str, Tensor], plain: dict[str, Tensor], architecture: str) -> None:
    for keys, what in (
        (state.keys() - plain.keys(), "keys that the plain {} does not have"),
        (plain.keys() - state.keys(), "no weights for keys of the plain {}"),
        ({k for k in state if k in plain and state[k].shape != plain[k].shape}, "shapes other than the plain {}'s"),
    ):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise UserError(f"The student has {what.format(architecture)}: {some}.")


def refuse_nonfinite(state: dict[str, Tensor]) -> None:
    bad = sorted(name for name, tensor in state.items() if not torch.isfinite(tensor).all())
    if bad:
        raise UserError(f"The student has numbers that are not finite in {', '.join(bad[:3])}: it cannot be exported.")


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each module's own mode given back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
