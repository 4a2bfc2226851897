"""What launchers such as torchrun and `accelerate launch` say in environment variables."""

import os

from accelerate.utils import parse_flag_from_env

from frskd_timm.errors import UserError
from frskd_train.settings import LoopSettings

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # numbers of processes
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # Accelerate's names and torch's


def was_launched() -> bool:
    """Return whether `accelerate launch` or torchrun started this process; they set OMP_NUM_THREADS to 1."""
    return bool({"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys())


def launched_precision() -> str:
    """Return Accelerate's name of the precision that `accelerate launch` was given; `no` is also its default."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def uses_cpu() -> bool:
    """Return whether `accelerate launch` was given `--cpu`; raise UserError if the variable is no truth value."""
    return _is_set("ACCELERATE_USE_CPU")


def refuse_missing_processes() -> None:
    """Raise UserError if `accelerate launch` should have started several processes on the CPU but started only one."""
    # Accelerate sets a master address only for several processes, and starts them on CPUs only through MPI.
    asked = os.environ.keys() >= {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"}
    if asked and not {*SIZES, "RANK"} & os.environ.keys():  # launchers set one of them for every process
        raise UserError(
            "accelerate launch starts only one process on a CPU: use torchrun --nproc_per_node N train.py for several, "
            "or unset MASTER_PORT."
        )


def refuse_separate_processes() -> None:
    """Raise UserError if a launcher started several processes of which Accelerate knows only this one."""
    # On GPUs, Accelerate reads the variables of torch's launcher only.
    for name in SIZES:
        if os.environ.get(name, "") not in ("", "1"):
            raise UserError(
                f"{name} is {os.environ[name]}, but each process would train alone: start with torchrun or accelerate "
                f"launch, or unset {name}."
            )


def refuse_launcher_settings(settings: LoopSettings, training: bool = True) -> None:
    """Raise UserError if Accelerate was launched with a setting that training, or scoring, does not follow."""
    for plugin in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if _is_set(f"ACCELERATE_USE_{plugin}"):
            raise UserError(
                f"Accelerate was started with {plugin}, which is not supported: use plain data parallelism."
            )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if training and steps not in ("1", str(settings.grad_accum_steps)):
        raise UserError(f"Accelerate was started with {steps} accumulation steps: give --grad-accum-steps {steps}.")
    if training and os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError("Accelerate was started with a dynamo backend: omit it and give --torchcompile.")
    if (amp := launched_precision()) not in PRECISIONS:
        raise UserError(f"Accelerate was started with the precision {amp}: choose from {', '.join(PRECISIONS)}.")


def _is_set(name: str) -> bool:
    """Return whether an environment variable of Accelerate is true; raise UserError if it is neither true nor false."""
    try:
        return parse_flag_from_env(name)
    except ValueError as error:
        raise UserError(f"The environment variable {name} is {os.environ[name]}: set it to true or false.") from error
