"""Flags of other training scripts, mostly timm's, and their equivalents here or, after `none:`, why there are none."""

_NOTHING = "none: it is not needed here"
_EITHER = {
    "--dataset, which takes a folder or a Hub id and downloads the data": "data_dir dataset_download",
    "`accelerate launch`, with its own --cpu for a CPU": "device",
    "the environment variable CUDA_VISIBLE_DEVICES": "gpu gpu_id gpus",
}
_TRAIN = {
    _NOTHING: "device_modules fast_norm local_rank no_prefetcher pin_mem save_images synchronize_step torchscript "
    "use_multi_epochs_loader",
    "--alpha and --beta, relative to the cross-entropy": "distill_loss_weight task_loss_weight",
    "--amp and --amp-dtype": "apex_amp native_amp amp_impl model_dtype fp16 bf16",
    "--aug-repeats and --aa, without splits": "aug_splits jsd_loss resplit split_bn",
    "--checkpoint-minutes": "recovery_interval",
    "--dataset, for datasets without code of their own": "dataset_trust_remote_code",
    "--decay-rate": "dr",
    "--drop-path": "drop_connect",
    "--feature-loss, which finds the sizes itself": "kd_student_feature_dim kd_teacher_feature_dim",
    "--img-size and --batch-size, one for the whole run": "train_batch_sizes train_img_sizes train_size_probs "
    "train_size_random_mix train_size_schedule train_size_schedule_spread variable_batch_loss_scale naflex_loader "
    "naflex_loss_scale naflex_max_seq_len naflex_train_seq_lens naflex_patch_size_probs naflex_patch_sizes "
    "naflex_patchify_channels_first",
    "--in-chans and --img-size HEIGHT WIDTH": "input_img_mode input_size",
    "--initial-checkpoint, which reads weights only": "no_resume_opt pretrained_path",
    "--interpolation": "train_interpolation",
    "--layer-decay, without bounds": "layer_decay_min_scale layer_decay_no_opt_scale",
    "--lr": "learning_rate",  # of transformers
    "--logit-loss and --feature-loss": "kd_distill_type kd_loss_type kd_token_distill_type",
    "--model-ema, on the device of the model": "model_ema_force_cpu",
    "--model-kwargs, such as global_pool=avg, for the models that take it": "gp bn_momentum bn_eps drop_block",
    "--opt-kwargs, such as 'betas=(0.9, 0.999)' eps=1e-8": "opt_betas opt_eps",
    "--output-dir, which is the folder of this run itself": "output",
    "--output-dir, whose last part is the name of the run": "experiment",
    "--report-to wandb and --project": "log_wandb wandb_project",
    "--reprob, which fills one rectangle with the mean colour": "remode recount",
    "--resume, which restores the epoch": "start_epoch",
    "--sched, one cycle without noise or cooldown, stepped at every update": "lr_cycle_mul lr_cycle_decay "
    "lr_cycle_limit lr_k_decay lr_noise lr_noise_pct lr_noise_std cooldown_epochs sched_on_updates",
    "--seed": "worker_seeding",
    "--self-teacher, which needs no trained teacher": "kd_model_name",
    "--sync-bn; every validation uses the first process's running statistics": "dist_bn no_ddp_bb",
    "--temperature": "kd_temperature",
    "--torchcompile": "fuser torchcompile_mode",
    "--train-crop-mode none and --hflip 0": "no_aug",
    "--train-num-samples or --epochs": "epoch_repeats train_batches_per_epoch train_steps_per_epoch",
    "--val-fraction or --val-split": "val_num_samples",
    "none: the best checkpoint is always that of top-1 or mean IoU": "eval_metric",
    "none: the classifier keeps the initialisation of the timm model": "head_init_bias head_init_scale",
    "--warmup-epochs, which are part of --epochs": "warmup_prefix",
    "the environment variables WANDB_RUN_ID and WANDB_TAGS": "wandb_resume_id wandb_tags",
    "validate.py, which has --tta flip": "tta",
}
_VALIDATE = {
    "none: it is part of the model": "in_chans mean num_classes pretrained std",
    "--img-size HEIGHT WIDTH; the channels are those of the model": "input_size",
    "--model, which takes the folder of a run or a student": "checkpoint",
    "--output": "results_file",
    "none: all images of the split are scored": "train_num_samples",
    "--val-split": "split",
    _NOTHING: "no_prefetcher pin_mem",
}
TRAIN, VALIDATE = (
    {name: answer for answer, names in (_EITHER | own).items() for name in names.split()} for own in (_TRAIN, _VALIDATE)
)
