"""The folder of an exported student: file names, weights, JSON, and atomic replacement."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from frskd_timm.errors import UserError, first_line

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"  # of models that timm exported otherwise
CONFIG = "config.json"
CARD = "README.md"
RECIPE = "recipe.yaml"
METRICS = "metrics.json"
EVAL_RESULTS = ".eval_results/frskd.yaml"  # scores in the Hub's newer format
STUDENT = "student"  # the folder of an export in that of a run
BACKBONE = "backbone"  # that of a segmentation student's backbone
DATASET_CARD = "DATASET.md"  # card of the dataset, beside shipped weights
# Pictures and exported programs are recognised by their suffix.
_PARTIAL = ".partial"
LEFT_BEHIND = {_PARTIAL, ".DS_Store", ".ipynb_checkpoints", "lost+found"}  # by a kill, file browsers, file systems
_OWN = {WEIGHTS, CONFIG, CARD, RECIPE, DATASET_CARD, METRICS, EVAL_RESULTS.split("/")[0]}


@contextmanager
def replacing(folder: Path, refuse: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder`, an older export, when the block ends without an error.

    A folder that cannot be renamed (a mount point, the working directory, one in a folder that cannot be written) stays
    in its place, and its files are replaced one by one. `refuse` raises UserError if the folder holds something else;
    by default, if that is not an exported student. Raises UserError if the temporary folder cannot be created.
    """
    recover(folder)
    folder = folder.resolve()
    (refuse or refuse_foreign)(folder)
    stays = folder.is_dir() and not _can_be_renamed(folder)
    aside = folder / _PARTIAL if stays else folder.with_name(f".{folder.name}{_PARTIAL}")
    for leftover in (aside, _previous(folder)):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({first_line(error)}): give another folder.") from error
    try:
        yield aside
        (_replace_files if stays else _replace_folder)(folder, aside)
    except UserError as error:  # the temporary folder will be gone
        raise UserError(str(error).replace(str(aside), str(folder))) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _can_be_renamed(folder: Path) -> bool:
    return (
        os.access(folder.parent, os.W_OK)
        and not os.path.ismount(folder)
        and not Path(os.path.realpath(".")).is_relative_to(folder)
    )


def _replace_folder(folder: Path, aside: Path) -> None:
    previous = _previous(folder)
    if folder.exists():
        folder.rename(previous)
    aside.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _replace_files(folder: Path, aside: Path) -> None:
    for old in folder.iterdir():
        if old.name not in LEFT_BEHIND:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for new in sorted(aside.iterdir(), key=lambda path: path.name == CONFIG):  # without its config it is no student
        new.rename(folder / new.name)


def recover(folder: Path) -> None:
    """Bring back an export whose replacement was interrupted between its two renames."""
    try:
        folder = folder.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or no name for a file
        return
    previous = _previous(folder)
    if not folder.exists() and previous.is_dir():
        previous.rename(folder)


def student_in(folder: Path) -> Path | None:
    """Return the folder of the student in that of a run, or `folder` if that is a student's; None without a student."""
    for found in (folder / STUDENT, folder):
        recover(found)
        if (found / CONFIG).is_file():
            return found
    return None


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def refuse_foreign(folder: Path) -> None:
    """Raise UserError unless `folder` is missing, empty or an older export, so that a typo cannot delete files."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the student.")
    names = {path.name for path in folder.iterdir()} - LEFT_BEHIND if folder.is_dir() else set()
    made = {name for name in names if Path(name).suffix in (".png", ".onnx", ".pt2") and (folder / name).is_file()}
    other = sorted(names - _OWN - made) or ([CONFIG] if CONFIG in names and not _is_export(folder / CONFIG) else [])
    if names and (other or CONFIG not in names):
        raise UserError(
            f"{folder} holds something other than an exported student ({', '.join(other or sorted(names))}): "
            "move it, or give another folder."
        )


def _is_export(config: Path) -> bool:
    """Return whether a config is that of an exported student, and not that of another program; true if damaged."""
    try:
        names = read_json(config).keys()
    except UserError:
        return True
    return {"architecture", "pretrained_cfg"} <= names or {"backbone", "num_classes"} <= names


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise UserError if the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the student/ folder of a finished run.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read as JSON ({first_line(error)}): export the student again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: export the student again.")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(folder: Path, model: nn.Module, *, half: bool = False) -> None:
    """Write a model's tensors as `model.safetensors`; see `plain_state_dict`."""
    save_file(plain_state_dict(model, half=half), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes the file readable by its owner only


def plain_state_dict(model: nn.Module, *, half: bool = False) -> dict[str, Tensor]:
    """Return the tensors to save: on the CPU, contiguous, unshared, float32, keys without wrapper prefixes.

    With `half`, parameters are float16; buffers stay float32. Raises UserError if a value is not finite, or no tensor.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_quantized:
            raise UserError(f"The student's {name} is not a plain tensor: export the student before you quantise it.")
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if half and name in parameters else torch.float32)
        plain = name.replace("_orig_mod.", "")  # torch.compile may also wrap single blocks, in the middle of a key
        state[plain] = tensor.clone(memory_format=torch.contiguous_format)
    if bad := _nonfinite(state):
        raise UserError(f"The student has values that are not finite in {bad}: it cannot be exported.")
    return state


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`, or timm's other format; raise UserError if it is missing or damaged, or not finite."""
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).is_file():
        path = folder / PICKLE
    try:
        state = load_file(path) if path.name == WEIGHTS else load_state_dict(str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the student/ folder of a finished run.") from None
    except Exception as error:  # safetensors has its own exception for damaged files
        raise UserError(f"{path} is damaged ({first_line(error)}): export the student again.") from None
    if bad := _nonfinite(state):
        raise UserError(f"{path} has values that are not finite in {bad}: export the student again.")
    return state


def _nonfinite(state: dict[str, Tensor]) -> str:
    """Return the names of the first tensors that have values that are not finite."""
    return ", ".join(sorted(name for name, tensor in state.items() if not torch.isfinite(tensor).all())[:3])
