"""What can go wrong in a run: kills, full disks, bad numbers, changed settings. `docs/reliability.md` is the index."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from pictures import encoded, picture, pictures, save, split
from runs import (
    METHOD,
    assert_same,
    end_of,
    family,
    fork,
    half_written,
    kill_all,
    small,
    start,
    train_here,
    wait_for,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from frskd_timm.errors import UserError
from frskd_train import parse
from frskd_train import settings as settings_module
from frskd_train.checkpoint import (
    all_checkpoints,
    find_damage,
    latest_checkpoint,
    load_state,
    prune,
    restore,
    save_checkpoint,
    set_aside_after,
)
from frskd_train.data.batches import TrainBatches
from frskd_train.errors import SettingsError
from frskd_train.folder import RunFolder, find_resume
from frskd_train.meter import TrainMeter, learning_note
from frskd_train.position import _FIXED, _FREE, check_resume

MARKER = "hf_tHiSiSaSeCrEtMaRkEr"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this file's runs lie; a dataset of 24 + 9 pictures is in `data`."""
    place = tmp_path_factory.mktemp("reliability")
    save(place / "data", train=pictures(24), test=pictures(9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", MARKER)  # must turn up nowhere; a test at the end looks
        yield place


@pytest.fixture(scope="module")
def whole(places: Path) -> Path:
    """A run that nothing happened to."""
    train_here(*small(places, *METHOD), "--output-dir", places / "whole")
    return places / "whole"


# --- Exact resume -----------------------------------------------------------------------------------------------------


def test_killed_while_it_writes_a_checkpoint_it_ends_with_the_same_bits(places: Path, whole: Path) -> None:
    run = places / "killed"
    flags = [*small(places, *METHOD), "--output-dir", run, "--checkpoint-minutes", 1e-6]
    assert end_of(fork(*flags, dies_at=34)) == -signal.SIGKILL
    assert half_written(run)
    assert latest_checkpoint(run / "checkpoints") is not None
    train_here("--resume", run, "--threads", 1)
    assert not half_written(run)
    assert_same(whole, run)


def test_stopped_before_its_first_checkpoint_it_begins_again(
    places: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    run = places / "early"
    (run / "checkpoints" / ".writing-step-00000001").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", run)
    train_here(*small(places, *METHOD), "--output-dir", run, "--resume", "auto")
    assert "before its first checkpoint: beginning again" in capsys.readouterr().out
    assert_same(whole, run)


def test_what_is_no_run_is_not_begun_again(whole: Path, tmp_path: Path) -> None:
    assert find_resume("auto", str(tmp_path / "new")) is None
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for resume, output in (("auto", tmp_path / "run"), (str(tmp_path / "run"), None)):
        with pytest.raises(UserError, match=r"summary\.csv but no checkpoint"):
            find_resume(resume, output and str(output))


# --- Checkpoints ------------------------------------------------------------------------------------------------------

STATE = {
    "epoch": 0, "step": 0, "updates": 0, "history": [], "best": None, "seconds": 0.0, "meter": {}, "settings": {},
    "fingerprint": "f", "global_batch": 8, "processes": 1,
}  # fmt: skip


def checkpoints(folder: Path, *steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(2, 4)).sum().backward()
    for step in steps:
        optimizer.step()
        save_checkpoint(folder, step, {"task": module}, optimizer, STATE)
    return module, optimizer


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "task.safetensors").write_bytes(b"\0" * (path / "task.safetensors").stat().st_size),
        lambda path: (path / "optimizer.safetensors").unlink(),
        lambda path: os.truncate(path / "task.safetensors", 100),
        lambda path: (path / "state.json").write_text('{"format": 1}'),
        lambda path: (path / "state.json").write_text("[]"),
        lambda path: os.truncate(path / "state.json", 50),
        lambda path: flip_a_bit(path / "task.safetensors"),
    ],
    ids=["zeros", "missing", "short", "no state", "other state", "half state", "one bit"],
)
def test_the_newest_whole_checkpoint_is_found(harm: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints(folder, 1, 2, 3)
    harm(folder / "step-00000003")
    (folder / ".writing-step-00000004").mkdir()
    assert latest_checkpoint(folder) == folder / "step-00000002"
    found = find_resume(str(tmp_path), None)
    assert found is not None
    assert found.checkpoint == folder / "step-00000002"
    assert "step-00000003" in found.notes[0]
    with pytest.raises(UserError, match="step-00000003"):
        find_resume(str(folder / "step-00000003"), None)
    for step in (1, 2):
        harm(folder / f"step-0000000{step}")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        find_resume("auto", str(tmp_path))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_best_and_the_last_few_are_kept(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1, 2, 3, 4, 5)
    prune(tmp_path, 2, "step-00000002")
    assert [path.name[-1] for path in all_checkpoints(tmp_path)] == ["2", "4", "5"]
    for newest in ("step-00000004", "step-00000002"):
        set_aside_after(tmp_path / newest)
        assert len(list(tmp_path.glob("abandoned-*"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abandoned-step-00000004", "step-00000002"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    module, optimizer = checkpoints(tmp_path, 1)
    for size in (0, 100, 300):  # fails at one file or another
        with file_size_limit(size), pytest.raises(UserError, match=r"could not be written .* last good .*-00000001"):
            save_checkpoint(tmp_path, 2, {"task": module}, optimizer, STATE)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        assert find_damage(tmp_path / "step-00000001") is None
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"weight first.*last good .*step-00000001"):
        save_checkpoint(tmp_path, 2, {"task": module}, optimizer, STATE)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes; gives what changes its size."""
    place.mkdir()
    mount = lambda *options: subprocess.run(["mount", *options, str(place)], capture_output=True).returncode
    if os.geteuid() != 0 or mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        pytest.skip("mounting a small file system needs root")
    try:
        yield lambda size: mount("-o", f"remount,size={size}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(places: Path, whole: Path, disk: Path, sizes: list[int]) -> set[str]:
    """Lets a run meet full disks of growing size, each time resumed; gives what was said."""
    said = set()
    with small_disk(disk, sizes[0]) as resize:
        for size in sizes:
            resize(size)
            try:
                train_here(*small(places, *METHOD), "--output-dir", disk / "run", "--resume", "auto")
                break
            except UserError as error:
                sentence = str(error)
                assert "No space left" in sentence or "StorageFull" in sentence, sentence
                said.add(sentence.split(" could not")[0].replace(str(disk), ""))
                kept = all_checkpoints(disk / "run" / "checkpoints")
                assert all(find_damage(path) is None for path in kept)
                assert not kept or str(kept[-1]) in sentence
        else:
            raise AssertionError("it never got room enough")
        assert_same(whole, disk / "run")
    return said


def test_a_full_disk_is_said_and_loses_nothing(places: Path, whole: Path, tmp_path: Path) -> None:
    room = sum(path.stat().st_size for path in whole.rglob("*"))
    said = fill_up(places, whole, tmp_path / "disk", [room // 3, room - 200_000, 4 * room])
    assert said


@pytest.mark.long
def test_full_disks_of_every_size(places: Path, whole: Path, tmp_path: Path) -> None:
    room = sum(path.stat().st_size for path in whole.rglob("*"))
    said = fill_up(places, whole, tmp_path / "disk", [4096, *range(room // 8, 2 * room, room // 12), 9 * room])
    assert {"/run", "/run/checkpoints"} <= said


# --- Numbers that go wrong --------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_named(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, epoch=1, step=3)
    with pytest.raises(UserError, match=r"loss_ce was not .* step 4 of epoch 2\. .* checkpoint: .*-00000006\. .*--lr"):
        train_here(*small(places), "--output-dir", places / "spoilt")
    assert all(torch.isfinite(weights).all() for weights in load_file(task_of(places / "spoilt")).values())

    train_here("--resume", places / "spoilt", "--skip-nonfinite", 1)
    rows = (places / "spoilt" / "summary.csv").read_text().splitlines()
    assert dict(zip(rows[0].split(","), rows[2].split(","), strict=True))["skipped_steps"] == "1"
    assert json.loads((places / "spoilt" / "metrics.json").read_text())["student"]["loss"] < 100

    spoil(monkeypatch, epoch=0, step=2)
    spoil(monkeypatch, epoch=0, step=4)
    with pytest.raises(UserError, match=r"step 3 of epoch 1, and at 2 steps of it in all.* checkpoint: none yet"):
        train_here(*small(places), "--skip-nonfinite", 1, "--output-dir", places / "spoilt twice")


def spoil(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Puts a NaN into the images of one step."""
    augment = TrainBatches._augment

    def spoilt(self: TrainBatches, images: Tensor, labels: Tensor, at: int, number: int) -> tuple[Tensor, Tensor]:
        images, target = augment(self, images, labels, at, number)
        return (images * float("nan") if (at, number) == (epoch, step) else images), target

    monkeypatch.setattr(TrainBatches, "_augment", spoilt)


def task_of(run: Path) -> Path:
    last = latest_checkpoint(run / "checkpoints")
    assert last is not None
    return last / "task.safetensors"


def test_a_student_that_learns_nothing_is_noticed() -> None:
    class Alone:
        def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
            return tensor

    meter = TrainMeter(torch.device("cpu"))
    for step in range(200):  # good for most of the epoch, then dead: the mean hides it
        ce = 0.5 if step < 140 else 2.3026
        meter.update({"loss": torch.tensor(ce), "loss_ce": torch.tensor(ce)})
    means, recent = meter.means(Alone()), meter.recent(Alone())  # type: ignore[arg-type]
    assert means["loss_ce"] < 1.2
    assert recent["loss_ce"] > 1.5
    again = TrainMeter(torch.device("cpu"))
    again.load(json.loads(json.dumps(meter.state(Alone()))))
    assert again.means(Alone()) == means  # type: ignore[arg-type]
    assert again.recent(Alone()) == recent  # type: ignore[arg-type]
    assert learning_note([{"top1": 50.0}], {"loss_ce": 1.0}, 10, 500) is None
    assert "learns nothing" in str(learning_note([], {"loss_ce": 2.31}, 10, 500))
    assert "no better than guessing" in str(learning_note([{"top1": 10.0}], {"loss_ce": 1.0}, 10, 500))
    assert "fell to 20.00% from 80.00%" in str(learning_note([{"top1": 80.0}, {"top1": 20.0}], {}, 10, 500))


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_every_setting_is_refused_said_or_free_at_resume() -> None:
    names = [field.name for _, field in parse.fields()]
    assert len(names) == len(set(names))
    assert set(_FIXED) | set(_FREE) <= set(names)
    assert not set(_FIXED) & set(_FREE)
    now = dict.fromkeys(names, "new") | {"epochs": 9}
    for name in set(names) - {"epochs"}:
        state = {**STATE, "settings": {**now, name: "old"}}
        facts = {"fingerprint": "f", "train_rows": 1, "data_mode": "memory", "global_batch": 8, "processes": 1}
        flag = parse.flag(name)
        if name in _FIXED:
            with pytest.raises(UserError, match=f"^{flag} is new now but was old"):
                check_resume(state, now, facts)
        else:
            said = check_resume(state, now, facts)
            assert said == ([] if name in _FREE else [f"{flag} is new from here on (was old)"])


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        ({"train_num_samples": 9}, {"fingerprint": "g"}, "fingerprint g, was f; --train-num-samples is 9, was 8"),
        ({}, {"fingerprint": "g"}, "fingerprint g, was f"),
        ({}, {"train_rows": 23}, "23 training images now but were 24"),
        ({}, {"global_batch": 16, "processes": 2}, r"16 images now \(2 process\(es\)\) but took 8; set --batch-size 4"),
        ({"epochs": 1}, {}, "--epochs is 1 now, but this run is in epoch 2"),
    ],
)
def test_what_may_not_change_is_refused(settings: dict[str, Any], facts: dict[str, Any], words: str) -> None:
    was = {"epochs": 3, "train_num_samples": 8}
    state = {**STATE, "epoch": 1, "step": 2, "train_rows": 24, "data_mode": "memory", "settings": was}
    now = {"fingerprint": "f", "train_rows": 24, "data_mode": "memory", "global_batch": 8, "processes": 1}
    assert check_resume(state, was, now) == []
    with pytest.raises(UserError, match=words):
        check_resume(state, {**was, **settings}, {**now, **facts})


def test_changed_numbers_of_the_optimizer_are_honoured(tmp_path: Path) -> None:
    checkpoints(tmp_path, 1)
    module = nn.Linear(4, 3)
    changed = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.7, weight_decay=0.1)
    restore(tmp_path / "step-00000001", load_state(tmp_path / "step-00000001"), {"task": module}, changed)
    assert [changed.param_groups[0][key] for key in ("lr", "momentum", "weight_decay")] == [0.5, 0.7, 0.1]
    assert changed.state[module.weight]["momentum_buffer"].abs().sum() > 0


def test_recipes_of_older_versions_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {field.name for _, field in parse.fields()}
    assert set(settings_module.RENAMED.values()) <= names
    assert not set(settings_module.RENAMED) & names
    (tmp_path / "old.yaml").write_text("learning-rate: 0.3\n")
    with pytest.raises(SettingsError, match="unknown setting 'learning-rate'"):
        parse.read_recipe(str(tmp_path / "old.yaml"))
    monkeypatch.setitem(settings_module.RENAMED, "learning_rate", "lr")
    assert parse.read_recipe(str(tmp_path / "old.yaml")).optimizer.lr == 0.3
    facts = {"fingerprint": "f", "train_rows": 1, "data_mode": "memory", "global_batch": 8, "processes": 1}
    state = {**STATE, "settings": {"learning_rate": 0.1}}
    assert check_resume(state, {"lr": 0.3, "epochs": 2}, facts) == ["--lr is 0.3 from here on (was 0.1)"]


def test_two_runs_never_share_a_folder(whole: Path, tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.claim(resuming=False)
    code = "import sys; from pathlib import Path; from frskd_train.folder import RunFolder\n"
    code += "RunFolder(Path(sys.argv[1])).claim(resuming=True)"
    other = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, cwd=ROOT)
    assert "Another process is training in" in other.stderr
    first.write("config.yaml", "")
    with pytest.raises(UserError, match="holds another run"):
        RunFolder(tmp_path / "run").claim(resuming=False)


# --- Processes and signals --------------------------------------------------------------------------------------------


def workers(launcher: subprocess.Popen) -> list[Any]:
    """The training processes under a launcher."""
    import psutil

    if launcher.poll() is not None:
        return []
    return [p for p in psutil.Process(launcher.pid).children(recursive=True) if "RANK" in environment(p)]


def environment(process: Any) -> dict[str, str]:
    import psutil

    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_a_dead_process_ends_the_others_and_is_named_once(places: Path) -> None:
    log = places / "dead.log"
    flags = small(places, "--batch-size", 4, "--epochs", 1000, "--log-interval", 1, "--output-dir", places / "dead")
    launcher = start(*flags, processes=2, log=log)
    try:
        wait_for(lambda: "epoch 2/1000  loss" in log.read_text(), launcher)
        found = workers(launcher)
        assert len(found) == 2, log.read_text()
        (victim,) = [process for process in found if environment(process)["RANK"] == "1"]
        victim.kill()
        began = time.monotonic()
        assert launcher.wait(60) != 0
        assert time.monotonic() - began < 30
        assert not any(process.is_running() and process.status() != "zombie" for process in found)
    finally:
        kill_all(launcher)
    said = log.read_text()
    assert said.count("error: ") == 1, said
    assert "process 1 of the run was ended by SIGKILL" in said
    assert "Traceback" not in said


def test_the_second_signal_ends_a_run_at_once(places: Path) -> None:
    """The first one waits for the end of a step, which is made endless here."""
    endless = (
        "import sys, time, runpy; from pathlib import Path; from frskd_train.data.batches import TrainBatches\n"
        "def hang(self, images, labels, epoch, step):\n"
        "    Path(sys.argv.pop()).touch()\n"
        "    while True: time.sleep(0.05)\n"
        "TrainBatches._augment = hang\n"
        "main = runpy.run_path('train.py')['main']\n"
        "from frskd_train.parse import parse_settings; main(parse_settings(sys.argv[1:-1]))\n"
    )
    command = [sys.executable, "-c", endless, *small(places, "--output-dir", places / "twice"), places / "hangs"]
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_for((places / "hangs").exists, process)
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() in (None, -signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) in (-signal.SIGTERM, -signal.SIGINT)
    finally:
        process.kill()


@pytest.mark.long
@pytest.mark.parametrize(("number", "everybody"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_two_processes_stop_together_and_go_on(number: int, everybody: bool, places: Path) -> None:
    """As a terminal's Ctrl-C (to all processes) and a scheduler's SIGTERM (to the launcher alone) reach them."""
    name = f"stopped by {number}"
    log, run = places / f"{name}.log", places / name
    launcher = start(*small(places, "--epochs", 400, "--output-dir", run), processes=2, log=log)
    try:
        wait_for(lambda: "epoch 2/400  loss" in log.read_text(), launcher)
        import psutil

        agent = psutil.Process(launcher.pid).children()[0]
        if everybody:
            os.killpg(launcher.pid, number)
        else:
            agent.send_signal(number)
        launcher.wait(60)
        wait_for(lambda: "go on with" in log.read_text(), launcher, seconds=30)
        psutil.wait_procs([agent], timeout=60)
    finally:
        kill_all(launcher)
    said = log.read_text()
    assert "stopped at step" in said, said
    state = load_state(latest_checkpoint(run / "checkpoints"))  # type: ignore[arg-type]
    assert state["processes"] == 2
    assert "error: " not in said, said
    flags = ["--resume", run, "--threads", 1, "--epochs", state["epoch"] + 1]
    train_here(*flags, "--batch-size", 8)  # one process now, the same global batch
    assert (run / "student" / "model.safetensors").is_file()


@pytest.mark.long
def test_the_launchers_end_stops_the_run_with_a_checkpoint(places: Path) -> None:
    log, run = places / "orphan.log", places / "orphan"
    flags = small(places, "--epochs", 1000, "--output-dir", run)
    launcher = start(*flags, processes=1, log=log)
    try:
        wait_for(lambda: "epoch 2/1000  loss" in log.read_text(), launcher)
        launcher.kill()
        launcher.wait()
        end = time.monotonic() + 60
        while "go on with" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert latest_checkpoint(run / "checkpoints") is not None


@pytest.mark.long
@pytest.mark.parametrize(("processes", "kills"), [(1, 10), (2, 4)])
def test_killed_again_and_again_it_ends_with_the_same_bits(processes: int, kills: int, places: Path) -> None:
    """kill -9 of everything, every other time while a checkpoint is being written, under the real launcher.

    The run's schedules do not depend on --epochs, so that it has no end until there were kills enough, however fast
    the machine.
    """
    flags = [*small(places, *METHOD), "--batch-size", 4 // processes, "--distill-schedule", "constant"]
    flags += ["--sched", "step", "--decay-epochs", 2, "--decay-rate", 0.9]
    reference, run, log = (places / f"{what} {processes}" for what in ("reference", "killed", "log"))
    endless = [*flags, "--epochs", 10**6, "--output-dir", run, "--resume", "auto", "--checkpoint-minutes", 1e-6]
    rng, killed, writing = random.Random(processes), 0, 0
    while killed < kills or writing < 2:
        assert killed < 3 * kills, f"only {writing} of {killed} kills came while a checkpoint was being written"
        newest = all_checkpoints(run / "checkpoints")[-1:]
        log.write_text("")
        launcher, members = start(*endless, processes=processes, log=log), []
        try:
            wait_for(lambda newest=newest: all_checkpoints(run / "checkpoints")[-1:] != newest, launcher)
            members = family(launcher)
            if killed % 2:
                time.sleep(rng.uniform(0, 0.3))
            else:
                wait_for(lambda: half_written(run), launcher, pause=0.0002)
            assert launcher.poll() is None, log.read_text()
        finally:
            kill_all(launcher, members or None)
        writing += bool(half_written(run))
        killed += 1

    epochs = load_state(latest_checkpoint(run / "checkpoints"))["epoch"] + 1  # type: ignore[arg-type]
    finish([*endless, "--epochs", epochs], processes, log)
    flags += ["--epochs", epochs, "--output-dir", reference]
    if processes == 1:
        train_here(*flags)
    else:
        finish(flags, processes, log)
    assert_same(reference, run)


def finish(flags: list[object], processes: int, log: Path) -> None:
    """Lets a run under the real launcher come to its end."""
    launcher = start(*flags, processes=processes, log=log)
    try:
        assert launcher.wait(900) == 0, log.read_text()
    finally:
        kill_all(launcher)


@pytest.mark.long
def test_killed_anywhere_it_ends_with_the_same_bits(places: Path) -> None:
    """Sixteen times kill -9 of a fork: at random file operations of writing, and at random times, start-up included.

    No life gets further than four updates, so that all sixteen fit into the run on any machine; the times are shares of
    what a life takes on this one.
    """
    flags, run, longest = small(places, *METHOD, "--epochs", 22), places / "forks", 45
    rng, writing, lifetime = random.Random(5), 0, 0.0
    for kill in range(16):
        timed, began = kill % 2, time.monotonic()
        dies_at = longest if timed else rng.randint(1, longest)
        child = fork(*flags, "--output-dir", run, "--resume", "auto", "--checkpoint-minutes", 1e-6, dies_at=dies_at)
        if timed and lifetime:
            time.sleep(rng.uniform(0, lifetime))
            os.kill(child, signal.SIGKILL)
        assert end_of(child) == -signal.SIGKILL, f"it ended by itself before kill {kill}"
        if timed and not lifetime:
            lifetime = time.monotonic() - began
        writing += bool(half_written(run))
    assert writing > 3
    train_here("--resume", run)
    train_here(*flags, "--output-dir", places / "unkilled")
    assert_same(places / "unkilled", run)


# --- What comes from outside ------------------------------------------------------------------------------------------


def test_no_pickle_is_read(places: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, resuming and loading the student, with everything forbidden that could run code out of data."""
    import timm

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle is read")

    torch_load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kw: torch_load(*args, **kw) if kw.get("weights_only") is True else refuse()
    )
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    train_here(*small(places, "--epochs", 1), "--output-dir", places / "unpickled")
    train_here("--resume", places / "unpickled", "--epochs", 2, "--threads", 1)
    timm.create_model(f"local-dir:{places / 'unpickled' / 'student'}", pretrained=True)
    with pytest.raises(AssertionError, match="a pickle is read"):
        pickle.loads(b"")
    evil = places / "evil.pth"
    evil.write_bytes(b"cposix\nsystem\n(S'touch " + str(places / "owned").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="--initial-checkpoint"):
        train_here(*small(places, "--initial-checkpoint", evil), "--output-dir", places / "evil")
    assert not (places / "owned").exists()


def test_no_source_file_asks_for_foreign_code() -> None:
    for path in [*(ROOT / "frskd_timm").rglob("*.py"), *(ROOT / "frskd_train").rglob("*.py"), *ROOT.glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text
        assert "weights_only=False" not in text
        assert text.count("torch.load(") == text.count("weights_only=True"), path


def test_names_from_outside_stay_in_the_folder(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class names, and a dataset's folder, that look like ways out."""
    import datasets

    names = ["../../out", "/tmp/out", "a\nb\u202e"]
    label = datasets.ClassLabel(names=names)
    rows = [encoded(picture(k)) for k in range(12)]
    data = tmp_path / "in" / "..evil\u202e name.."
    save(data, train=split(rows, [0, 1, 2] * 4, label), test=split(rows, [0, 1, 2] * 4, label))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = set(tmp_path.rglob("*"))
    train_here(*small(places, "--dataset", data, "--epochs", 1))
    new = set(tmp_path.rglob("*")) - before
    assert new
    assert all((tmp_path / "work" / "runs") in (path, *path.parents) for path in new)
    (run,) = (tmp_path / "work" / "runs").iterdir()
    assert run.name.startswith("test_resnet-evil-name-")
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == names


# --- Last, over all that this file's runs wrote -----------------------------------------------------------------------


def test_tokens_are_written_nowhere(places: Path, whole: Path, capfd: pytest.CaptureFixture) -> None:
    from hub_server import LoopbackHub

    with LoopbackHub() as hub:  # which knows another token: pushing fails
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        flags = small(places, "--epochs", 1, "--push-to-hub", "someone/student", "--output-dir", places / "refused")
        process = start(*flags, log=places / "refused.log", HF_TOKEN=MARKER, **env)
        assert process.wait(300) == 2
        said = (places / "refused.log").read_text()
        assert "error: " in said
        assert "Traceback" not in said, said
        assert hub.asked("."), "the Hub was never asked"
    looked_at = [path for path in places.rglob("*") if path.is_file()]
    assert len(looked_at) > 50
    for path in looked_at:
        assert MARKER.encode() not in path.read_bytes(), path


def test_the_document_names_tests_that_exist() -> None:
    """Each promise of docs/reliability.md points at the test that holds it."""
    import re

    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}.{test}"
