"""Flags of timm's scripts that are called otherwise here, so that an answer can name the right one."""

from collections.abc import Mapping

EITHER = {
    "data_dir": "--dataset, which takes a folder or a Hub id",
    "dataset_download": "--dataset, which takes a Hub id and downloads it",
    "device": "`accelerate launch`, with its own --cpu for a CPU",
}

TRAIN = EITHER | {
    "dist_bn": "nothing to set, as every validation uses the first process's running statistics; or --sync-bn",
    "drop_connect": "--drop-path",
    "experiment": "--output-dir",
    "gp": "--model-kwargs global_pool=avg",
    "input_size": "--in-chans and --img-size",
    "log_wandb": "--report-to wandb",
    "native_amp": "--amp",
    "no_resume_opt": "--initial-checkpoint, which takes weights alone",
    "opt_betas": "--opt-kwargs 'betas=(0.9, 0.999)'",
    "opt_eps": "--opt-kwargs eps=1e-8",
    "output": "--output-dir",
    "recovery_interval": "--checkpoint-minutes",
    "start_epoch": "--resume, which knows its epoch",
    "train_interpolation": "--interpolation",
}

_OF_THE_MODEL = "nothing to set, as a model comes with it"

VALIDATE = EITHER | {
    "checkpoint": "--model, which takes a run's or a student's folder",
    "in_chans": _OF_THE_MODEL,
    "input_size": "--img-size; the channels are the model's",
    "mean": _OF_THE_MODEL,
    "num_classes": _OF_THE_MODEL,
    "pretrained": "nothing to set, as a name comes with its weights",
    "results_file": "--output",
    "split": "--val-split",
    "std": _OF_THE_MODEL,
}


def elsewhere(name: str, table: Mapping[str, str]) -> str | None:
    """What a flag of timm's (`opt_eps`) is here, as a sentence; None where it has the same name or no counterpart."""
    return f"timm's --{name.replace('_', '-')}: here {table[name]}." if name in table else None
