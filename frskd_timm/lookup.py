"""Look up configurations of models: in timm's registry, with suggestions for unknown names, and in exported folders."""

import difflib
import os
from collections.abc import Mapping
from typing import Any

import timm
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from timm.models import PretrainedCfg, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path  # timm has no public reader of 'local-dir:'

from frskd_timm.errors import UserError, first_line

# Arguments of timm.create_model that say where weights are. A config.json, which may be a stranger's, cannot set them:
# with them, timm would download any file to any folder.
_PLACES = {
    "cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"
}  # fmt: skip


def refuse_places(arguments: Mapping[str, Any], where: object) -> None:
    """Raise UserError if arguments for building a network contain one that says where weights are."""
    if found := sorted(_PLACES & arguments.keys()):
        raise UserError(f"{where} contains {found[0]}, which does not describe a network: remove it.")


def hub_name(name: str) -> tuple[str, str | None]:
    """Return repository and revision of `[hf-hub:]OWNER/NAME[@REVISION]`, or `[local-dir:]FOLDER` and None."""
    folder = name.removeprefix("local-dir:")
    if folder != name or os.path.isdir(folder):
        return folder, None
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    return repo, revision or None


HUB_ERRORS = (HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled)

# What is wrong with a repository that could not be read; subclasses first.
_PROBLEMS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (GatedRepoError, "request access on its page, and log in with `hf auth login`"),
    (RepositoryNotFoundError, "there is no such repository, or it is private and needs `hf auth login`"),
    (RevisionNotFoundError, "the repository has no such revision"),
    ((LocalEntryNotFoundError, OfflineModeIsEnabled), "there is no connection to the Hub, and no copy in the cache"),
    (EntryNotFoundError, "the repository has no config.json"),
)


def hub_error(name: str, error: Exception) -> UserError:
    """Return an error that says why a model could not be read from the Hub."""
    problem = next((text for kinds, text in _PROBLEMS if isinstance(error, kinds)), first_line(error))
    return UserError(f"{name} could not be downloaded from the Hub: {problem}.")


def known_cfg(name: str, *, weights: bool = False) -> PretrainedCfg | None:
    """Return timm's default configuration of `architecture` or `architecture.tag`; None if the model has none.

    Raises:
        UserError: timm has no such model, no such tag, or no weights although `weights` asks for them.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else " timm.list_models() lists the names."
        if "/" in name:
            place = name.removeprefix("hf_hub:")
            hint = f" A model from the Hub is hf-hub:{place}, one from a folder local-dir:{place}."
        raise UserError(f"timm has no model '{name}'.{hint}")
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the tag
        known = ", ".join(timm.list_pretrained(f"{architecture}.*"))
        hint = f"choose from {known}" if known else f"there are none for '{architecture}'"
        raise UserError(f"timm has no weights '{name}'; {hint}.") from error
    if weights and (cfg is None or not cfg.has_weights):
        raise UserError(
            f"There are no pretrained weights for '{name}': train without pretrained weights, or give the folder of "
            "a run or a student."
        )
    return cfg


def exported_cfg(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return timm's configuration, with its `architecture`, and the arguments of a `local-dir:` or `hf-hub:` model."""
    kind, place = name.split(":", 1)
    read = load_model_config_from_path if kind == "local-dir" else load_model_config_from_hf
    cfg, architecture, arguments = read(place)
    return {**cfg, "architecture": architecture}, arguments or {}
