"""Flags of timm's `train.py` that are called otherwise here, so that an answer can name the right one."""

HERE = {
    "data_dir": "--dataset, which takes a folder or a Hub id",
    "dataset_download": "--dataset, which takes a Hub id and downloads it",
    "device": "`accelerate launch`, with its own --cpu for a CPU",
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


def elsewhere(name: str) -> str | None:
    """What a flag of timm's (`opt_eps`) is here, as a sentence; None where it has the same name or no counterpart."""
    return f"timm's --{name.replace('_', '-')} is here {HERE[name]}." if name in HERE else None
