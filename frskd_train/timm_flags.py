"""Flags of timm's scripts that have another name here or do not exist, so that an error can name the right one."""

_NOTHING = "nothing to set"
EITHER = {
    "data_dir": "--dataset, which takes a folder or a Hub id",
    "dataset_download": "--dataset, which takes a Hub id and downloads it",
    "device": "`accelerate launch`, with its own --cpu for a CPU",
    "no_prefetcher": _NOTHING,
    "pin_mem": _NOTHING,
}

TRAIN = EITHER | {
    **dict.fromkeys(("bce_loss", "jsd_loss", "bce_target_thresh"), "--smoothing, as the loss is cross-entropy"),
    **dict.fromkeys(("mixup_prob", "mixup_mode", "mixup_off_epoch", "mixup_switch_prob"), "--mixup and --cutmix"),
    **dict.fromkeys(("aug_repeats", "aug_splits", "resplit"), "--epochs and --aa"),
    **dict.fromkeys(("remode", "recount"), "--reprob, with one rectangle of noise"),
    **dict.fromkeys(("grayscale_prob", "gaussian_blur_prob"), "--aa or --color-jitter"),
    **dict.fromkeys(("lr_base", "lr_base_size", "lr_base_scale"), "--lr, the rate of the batch as it is"),
    **dict.fromkeys(("lr_cycle_mul", "lr_cycle_decay", "lr_cycle_limit", "lr_k_decay"), "--sched cosine, one cycle"),
    **dict.fromkeys(("lr_noise", "cooldown_epochs", "patience_epochs"), "--sched, without noise, cooldown or plateau"),
    **dict.fromkeys(("bn_momentum", "bn_eps", "drop_block"), "--model-kwargs, for the models that take it"),
    **dict.fromkeys(("recovery_interval", "save_images"), "--checkpoint-minutes"),
    **dict.fromkeys(("experiment", "output"), "--output-dir"),
    **dict.fromkeys(("apex_amp", "native_amp", "amp_impl"), "--amp"),
    "cutmix_minmax": "--cutmix",
    "dist_bn": "nothing to set, as every validation uses the first process's running statistics; or --sync-bn",
    "drop_connect": "--drop-path",
    "epoch_repeats": "--epochs",
    "eval_metric": "--val-interval; the best checkpoint is that of top-1 or mean IoU",
    "gp": "--model-kwargs global_pool=avg",
    "input_size": "--in-chans and --img-size",
    "log_wandb": "--report-to wandb",
    "no_aug": "--train-crop-mode none and --hflip 0",
    "no_resume_opt": "--initial-checkpoint, which reads weights only",
    "opt_betas": "--opt-kwargs 'betas=(0.9, 0.999)'",
    "opt_eps": "--opt-kwargs eps=1e-8",
    "start_epoch": "--resume, which restores the epoch",
    "train_interpolation": "--interpolation",
    "tta": "validate.py, without test-time augmentation",
    "worker_seeding": "--seed",
}

_OF_THE_MODEL = "nothing to set, as it is part of the model"

VALIDATE = EITHER | {
    "checkpoint": "--model, which takes the folder of a run or a student",
    "in_chans": _OF_THE_MODEL,
    "input_size": "--img-size; the channels are those of the model",
    "mean": _OF_THE_MODEL,
    "num_classes": _OF_THE_MODEL,
    "pretrained": "nothing to set, as a model is loaded with its weights",
    "results_file": "--output",
    "split": "--val-split",
    "std": _OF_THE_MODEL,
}
