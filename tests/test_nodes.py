"""Several machines, as two launchers on the loopback interface, and the examples for clusters."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, free_port
from pictures import pictures, save
from runs import kill_all, rows, small, train_here, wait_for

from frskd_train.run.checkpoint import latest_checkpoint, load_state

ENDLESS = 10**6


@contextmanager
def two_nodes(log: Path, *flags: object) -> Iterator[list[subprocess.Popen]]:
    """Start `accelerate launch` once per node, each with one process; what they print is in LOG.0 and LOG.1."""
    port, launchers = free_port(), []
    for rank in (0, 1):
        nodes = ["--num_machines", 2, "--num_processes", 2, "--machine_rank", rank, "--main_process_port", port]
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--multi_gpu",
            "--quiet",
            *nodes,
        ]
        command = [*launch, "--main_process_ip", "127.0.0.1", ROOT / "train.py", *flags]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        with Path(f"{log}.{rank}").open("w") as file:
            launchers.append(
                subprocess.Popen(
                    list(map(str, command)),
                    cwd=ROOT,
                    start_new_session=True,
                    stdout=file,
                    stderr=file,
                    env=environment,
                )
            )
    try:
        yield launchers
    finally:
        for launcher in launchers:
            kill_all(launcher)


@pytest.mark.long
def test_two_nodes_equal_one_process(places: Path, tmp_path: Path) -> None:
    """Train to the same losses with the same global batch, then continue the run on one node."""
    one, two = places / "one node", places / "two nodes"
    data = save(tmp_path / "data", train=pictures(64), test=pictures(9))
    flags = ["--dataset", data, "--model", "wide_resnet16_2_frskd", "--no-amp", "--epochs", 1, "--lr", 0.002]
    train_here(*flags, "--batch-size", 32, "--output-dir", one)
    with two_nodes(places / "log", *flags, "--batch-size", 16, "--sync-bn", "--output-dir", two) as nodes:
        assert [node.wait(240) for node in nodes] == [0, 0], Path(f"{places / 'log'}.0").read_text()
    for term in ("loss", "loss_ce", "loss_ce_teacher", "loss_kl", "loss_feature"):
        assert float(rows(two)[0][term]) == pytest.approx(float(rows(one)[0][term]), rel=1e-3), term
    train_here("--resume", two, "--batch-size", 32, "--epochs", 2)
    assert len(rows(two)) == 2


@pytest.mark.long
def test_the_end_of_one_node_ends_the_other(places: Path) -> None:
    run, log = places / "lost node", places / "lost"
    flags = small(places, "--epochs", ENDLESS, "--output-dir", run)
    with two_nodes(log, *flags) as (first, second):
        assert wait_for(lambda: "epoch 2/" in Path(f"{log}.0").read_text(), first), Path(f"{log}.0").read_text()
        kill_all(second)
        assert first.wait(60) != 0
    assert re.search(r"rank +: 0", Path(f"{log}.0").read_text())
    state = load_state(latest_checkpoint(run / "checkpoints"))  # type: ignore[arg-type]
    train_here("--resume", run, "--batch-size", 8, "--epochs", state["epoch"] + 1)  # one node now
    assert (run / "student" / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("gpus", ["2", "1"])
def test_the_slurm_script_starts_stops_and_queues_again(places: Path, gpus: str) -> None:
    """Run it with stand-ins for SLURM's own commands, which this machine does not have.

    Like SLURM's, the stand-in for srun kills the processes of the step when it gets SIGTERM.
    """
    home = places / f"slurm of {gpus}"
    tools = home / "slurm"
    tools.mkdir(parents=True)
    for name, text in {
        "srun": f"""while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 setsid "$@" &
echo $! > "{home}/step"
trap 'kill -KILL -- "-$!"' TERM
wait $!""",
        "scancel": f'[ "$*" = "--signal=TERM 7.0" ] && kill -TERM -- "-$(cat "{home}/step")"',
        "scontrol": f'[ "$1" = requeue ] && touch "{home}/queued" || echo 127.0.0.1',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(stat.S_IRWXU)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here", "SLURM_GPUS_ON_NODE": gpus}
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "PATH": path, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "examples" / "slurm.sh"), *small(places, "--epochs", ENDLESS)]
    log = home / "slurm.log"
    with log.open("w") as file:
        job = subprocess.Popen(command, cwd=home, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        assert wait_for(lambda: "epoch 2/" in log.read_text(), job), log.read_text()
        job.send_signal(10)  # SIGUSR1
        job.wait(120)
    finally:
        kill_all(job)
    assert (home / "queued").exists(), log.read_text()
    assert re.search(rf"Stopped in .* Continue{' in 2 processes, as before,' * (gpus == '2')} with:", log.read_text())
    assert latest_checkpoint(home / "runs" / "slurm-7" / "checkpoints") is not None
