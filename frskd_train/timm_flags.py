"""Flags of timm's scripts that have another name here or do not exist, so that an error can name the right one."""

_NOTHING = "nothing to set"
_ONE_SIZE = "--img-size and --batch-size, one for the whole run"
EITHER = {
    "data_dir": "--dataset, which takes a folder or a Hub id",
    "dataset_download": "--dataset, which takes a Hub id and downloads it",
    "device": "`accelerate launch`, with its own --cpu for a CPU",
    "no_prefetcher": _NOTHING,
    "pin_mem": _NOTHING,
}

TRAIN = EITHER | {
    **dict.fromkeys(("aug_splits", "jsd_loss", "resplit", "split_bn"), "--aug-repeats and --aa, without splits"),
    **dict.fromkeys(("remode", "recount"), "--reprob, with one rectangle of noise"),
    **dict.fromkeys(("lr_cycle_mul", "lr_cycle_decay", "lr_cycle_limit", "lr_k_decay"), "--sched cosine, one cycle"),
    **dict.fromkeys(
        ("lr_noise", "lr_noise_pct", "lr_noise_std", "cooldown_epochs"), "--sched, without noise or cooldown"
    ),
    **dict.fromkeys(("layer_decay_min_scale", "layer_decay_no_opt_scale"), "--layer-decay, without bounds"),
    **dict.fromkeys(("bn_momentum", "bn_eps", "drop_block"), "--model-kwargs, for the models that take it"),
    **dict.fromkeys(("recovery_interval", "save_images"), "--checkpoint-minutes"),
    **dict.fromkeys(("experiment", "output"), "--output-dir and --run-name"),
    **dict.fromkeys(("apex_amp", "native_amp", "amp_impl"), "--amp"),
    **dict.fromkeys(("fuser", "torchcompile_mode", "torchscript"), "--torchcompile"),
    **dict.fromkeys(("head_init_bias", "head_init_scale"), "--warmup-epochs, as timm initialises the classifier"),
    **dict.fromkeys(("kd_distill_type", "kd_loss_type", "kd_token_distill_type"), "--logit-loss and --feature-loss"),
    **dict.fromkeys(
        ("kd_student_feature_dim", "kd_teacher_feature_dim"), "--feature-loss, which finds the sizes itself"
    ),
    **dict.fromkeys(("distill_loss_weight", "task_loss_weight"), "--alpha and --beta, relative to the cross-entropy"),
    **dict.fromkeys(("train_batches_per_epoch", "train_steps_per_epoch"), "--train-num-samples or --epochs"),
    **dict.fromkeys(("train_batch_sizes", "train_img_sizes", "train_size_probs", "train_size_random_mix"), _ONE_SIZE),
    **dict.fromkeys(("train_size_schedule", "train_size_schedule_spread", "variable_batch_loss_scale"), _ONE_SIZE),
    **dict.fromkeys(("naflex_loader", "naflex_loss_scale", "naflex_max_seq_len", "naflex_train_seq_lens"), _ONE_SIZE),
    **dict.fromkeys(("naflex_patch_size_probs", "naflex_patch_sizes", "naflex_patchify_channels_first"), _ONE_SIZE),
    **dict.fromkeys(("fast_norm", "synchronize_step", "use_multi_epochs_loader"), _NOTHING),
    **dict.fromkeys(
        ("dist_bn", "no_ddp_bb"),
        "nothing to set, as every validation uses the first process's running statistics; or --sync-bn",
    ),
    "dataset_trust_remote_code": "--dataset, for datasets without code of their own",
    "device_modules": "nothing to set, as the students are registered already",
    "dr": "--decay-rate",
    "drop_connect": "--drop-path",
    "epoch_repeats": "--epochs",
    "eval_metric": "--val-interval; the best checkpoint is that of top-1 or mean IoU",
    "gp": "--model-kwargs global_pool=avg",
    "input_img_mode": "--in-chans",
    "input_size": "--in-chans and --img-size",
    "kd_model_name": "--self-teacher, which needs no trained teacher",
    "kd_temperature": "--temperature",
    "local_rank": "nothing to set, as the launcher sets it",
    "log_wandb": "--report-to wandb",
    "model_dtype": "--amp-dtype",
    "model_ema_force_cpu": "--model-ema, on the device of the model",
    "no_aug": "--train-crop-mode none and --hflip 0",
    "no_resume_opt": "--initial-checkpoint, which reads weights only",
    "opt_betas": "--opt-kwargs 'betas=(0.9, 0.999)'",
    "opt_eps": "--opt-kwargs eps=1e-8",
    "pretrained_path": "--initial-checkpoint",
    "sched_on_updates": "--sched, which is always stepped at every update",
    "start_epoch": "--resume, which restores the epoch",
    "train_interpolation": "--interpolation",
    "tta": "validate.py, which has --tta flip",
    "val_num_samples": "--val-fraction or --val-split",
    "wandb_project": "--project",
    "wandb_resume_id": "nothing to set, or the environment variable WANDB_RUN_ID",
    "wandb_tags": "the environment variable WANDB_TAGS",
    "warmup_prefix": "--warmup-epochs, which are part of --epochs",
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
