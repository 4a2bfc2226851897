"""Device, CPU cores and precision of this machine."""

import ctypes
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

from frskd_timm.errors import UserError, first_line
from frskd_train.settings import LoopSettings
from frskd_train.system import launcher

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time, and the period in which they may be used


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
    cpu = launcher.uses_cpu() or device is None or device.type == "mps"
    if cpu:
        launcher.refuse_missing_processes()
    launcher.refuse_launcher_settings(settings, training)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of 1x1 kernels: harmless
    given = sorted(os.environ.keys() & {*launcher.SIZES, "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
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
        launcher.refuse_separate_processes()
    wanted = os.environ.get("OMP_NUM_THREADS")
    launched = launcher.was_launched() or local_processes > 1
    if settings.threads or not wanted or (launched and wanted == "1"):
        torch.set_num_threads(settings.threads or max(1, cores() // local_processes))
    elif launched:  # Accelerate counts all cores of the machine
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
    if state.device.type == "cpu":
        keep_freed_memory()
    amp = precision(settings, state.device)
    try:
        return Accelerator(cpu=cpu, mixed_precision=amp, log_with=[*trackers] or None, project_dir=folder or "runs")
    except (ValueError, ImportError) as error:
        if "already been initialized" in str(error):  # by an earlier run, with another precision
            raise UserError(
                "This process has started Accelerate with another precision: train in a new process."
            ) from error
        raise UserError(f"Accelerate could not start: {first_line(error)}.") from error


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


def machine_name(device: torch.device) -> str:
    """Return the name of the GPU, for other devices that of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def precision(settings: LoopSettings, device: torch.device) -> str:
    """Return Accelerate's name of the precision: 'bf16', 'fp16' or 'no'; raise UserError for float16 on a CPU.

    A data type that `accelerate launch` was given replaces `--amp-dtype auto`, except its default, `no`.
    """
    if not settings.amp:
        return "no"
    launched, dtype = launcher.launched_precision(), str(settings.amp_dtype)
    if dtype == "auto" and launched != "no":
        dtype = launcher.PRECISIONS[launched]
    if dtype == "float16":
        if device.type == "cpu":
            by = "--amp-dtype float16" if settings.amp_dtype == "float16" else "Accelerate's mixed precision fp16"
            raise UserError(f"{by} needs a GPU: give --amp-dtype bfloat16, or --no-amp.")
        return "fp16"
    return "bf16" if dtype == "bfloat16" or fast_bfloat16(device) else "no"


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not have it
    return device.type == "cpu" and any(known.get(instructions) for instructions in ("avx512_bf16", "amx_tile"))
