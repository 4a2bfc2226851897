"""Device, CPU cores and precision of this machine."""

import ctypes
import functools
import math
import os
import platform
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from timm.optim import muon

from frskd_timm.errors import UserError, first_line
from frskd_train.settings import LoopSettings

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # numbers of processes
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time, and the period in which they may be used
LAUNCHED = {"no": "auto", "bf16": "bfloat16", "fp16": "float16"}  # precisions of `accelerate launch`


def start_accelerator(
    settings: LoopSettings, trackers: Sequence[str] = (), folder: str | None = None, training: bool = True
) -> Accelerator:
    """Create the accelerator with the right precision, and give this process its share of the cores.

    Launchers allow one thread per process by default; here the cores are divided evenly. Other values of
    OMP_NUM_THREADS keep their meaning, up to the number of cores. Raises UserError if the environment is not that of a
    launcher, or the device cannot use the precision.
    """
    # Accelerate has to be told that several processes without a GPU belong together. Apple's GPUs have no float64, in
    # which losses and scores are summed.
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cpu = _is_set("ACCELERATE_USE_CPU") or device is None or device.type == "mps"
    if cpu:
        refuse_missing_processes()
    refuse_launcher_settings(settings, training)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1x1 kernels: harmless
    given = sorted(os.environ.keys() & {*SIZES, "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
    try:
        state = PartialState(cpu=cpu)
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except (ValueError, ImportError, NotImplementedError) as error:
        if not given:
            raise UserError(f"Accelerate could not start: {first_line(error)}.") from error
        raise UserError(
            f"{', '.join(given)} in the environment is not from a launcher ({first_line(error)}): unset it, or start "
            "with torchrun or accelerate launch."
        ) from error
    if state.num_processes == 1:
        refuse_separate_processes()
    wanted = os.environ.get("OMP_NUM_THREADS")
    launched = {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"} & os.environ.keys()  # they set OMP_NUM_THREADS to 1
    if settings.threads or not wanted or (launched and wanted == "1"):
        torch.set_num_threads(settings.threads or max(1, cores() // local_processes))
    elif launched:  # Accelerate counts all cores of the machine
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
    if state.device.type == "cpu":
        keep_freed_memory()
    if not _fast_bfloat16(state.device):
        muon_in_float32()
    amp = precision(settings, state.device)
    try:
        return Accelerator(cpu=cpu, mixed_precision=amp, log_with=[*trackers] or None, project_dir=folder or "runs")
    except (ValueError, ImportError) as error:
        if "already been initialized" in str(error):  # by an earlier run, with another precision
            raise UserError(
                "This process has started Accelerate with another precision: train in a new process."
            ) from error
        raise UserError(f"Accelerate could not start: {first_line(error)}.") from error


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
    if (amp := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in LAUNCHED:
        raise UserError(f"Accelerate was started with the precision {amp}: choose from {', '.join(LAUNCHED)}.")


def _is_set(name: str) -> bool:
    """Return whether an environment variable of Accelerate is true; raise UserError if it is neither true nor false."""
    try:
        return parse_flag_from_env(name)
    except ValueError as error:
        raise UserError(f"The environment variable {name} is {os.environ[name]}: set it to true or false.") from error


def cores() -> int:
    """Return the number of cores that this process may use, also in a container with a limit of processor time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control group, or without a limit ("max")
        quota, period = CPU_LIMIT.read_text(encoding="ascii").split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return count


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large tensors for the next step, unless its environment variables are set.

    Mapping and clearing new pages takes a tenth of a training step on a CPU.
    """
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if chosen or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # mallopt(3)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def muon_in_float32() -> None:
    """Let timm's Muon orthogonalise its updates in float32 instead of bfloat16, which it offers no argument for.

    A CPU without bfloat16 instructions emulates them at a quarter of the speed of float32.
    """
    muon.zeropower_via_newtonschulz = functools.partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


def machine_name() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def precision(settings: LoopSettings, device: torch.device) -> str:
    """Return Accelerate's name of the precision: 'bf16', 'fp16' or 'no'; raise UserError for float16 on a CPU.

    A data type that `accelerate launch` was given replaces `--amp-dtype auto`. Its `no` is also its default, so it
    changes nothing.
    """
    if not settings.amp:
        return "no"
    launched = LAUNCHED[os.environ.get("ACCELERATE_MIXED_PRECISION", "no")]
    dtype = launched if settings.amp_dtype == "auto" else settings.amp_dtype
    if dtype == "float16":
        if device.type == "cpu":
            by = "--amp-dtype float16" if settings.amp_dtype == "float16" else "Accelerate's mixed precision fp16"
            raise UserError(f"{by} needs a GPU: give --amp-dtype bfloat16, or --no-amp.")
        return "fp16"
    return "bf16" if dtype == "bfloat16" or _fast_bfloat16(device) else "no"


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not have it
    return device.type == "cpu" and any(known.get(instructions) for instructions in ("avx512_bf16", "amx_tile"))
