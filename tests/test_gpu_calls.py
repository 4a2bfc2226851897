"""The calls of the plan for a GPU: what they do in which order, and when they end."""

import argparse
import itertools
import subprocess
from pathlib import Path
from types import SimpleNamespace

import commits
import gpu
import pytest

from tools.table_files import append, read


@pytest.mark.parametrize(
    ("statuses", "order"),
    [
        ({}, "abc"),
        ({"a": "too long"}, "bca"),
        ({"a": "too long", "b": "too late"}, "cba"),  # b may fit into a whole call
        ({"a": "failed", "b": "done"}, "ca"),
        ({"c": "stopped"}, "abc"),  # it continues
    ],
)
def test_what_cannot_be_done_in_a_call_does_not_hold_up_the_rest(tmp_path: Path, monkeypatch, statuses, order) -> None:
    jobs = [gpu.Job("speed", "a", []), gpu.Job("speed", "b", []), gpu.Job("words", "c", [], continues=True)]
    monkeypatch.setattr(gpu, "jobs", lambda args: jobs)
    rows = [{"stage": job.stage, "job": job.name, "commit": gpu.commit()} for job in jobs if job.name in statuses]
    for row in rows:
        append(tmp_path / "jobs.csv", [row | {"status": statuses[row["job"]]}])
    args = argparse.Namespace(output=tmp_path)
    assert "".join(job.name for _, job in gpu.remaining(args)) == order
    monkeypatch.setattr(gpu, "commit", lambda: "another")  # measured anew, but not trained anew
    assert "".join(job.name for _, job in gpu.remaining(args)) == "abc"


@pytest.mark.parametrize(
    "seconds", [dict(zip("abcd", times, strict=True)) for times in sorted({*itertools.permutations((3, 3, 6, 100))})]
)
@pytest.mark.parametrize("failing", ["", "a", "d"])
def test_repeated_calls_do_everything_that_fits_into_one(tmp_path: Path, monkeypatch, seconds, failing) -> None:
    """Calls of 8 seconds each, with a job that never fits and at most one that fails."""
    now = [0.0]

    def execute(job: gpu.Job, log: Path, left: float) -> str:
        now[0] += min(seconds[job.name], left)
        log.parent.mkdir(exist_ok=True)
        log.touch()
        return "stopped" if seconds[job.name] > left else "failed" if job.name == failing else "done"

    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(gpu, "execute", execute)
    monkeypatch.setattr(gpu, "commit", lambda: "c")
    monkeypatch.setattr(gpu, "jobs", lambda args: [gpu.Job("speed", name, []) for name in seconds])
    args = argparse.Namespace(output=tmp_path, minutes=(gpu.GRACE + 8) / 60, torchcompile=False)
    for _ in range(10):
        now[0] = gpu.START
        status = gpu.work(args)
        if status != gpu.NOT_FINISHED:
            break
    assert status == 1
    done = {row["job"] for row in read(tmp_path / "jobs.csv") if row["status"] == "done"}
    assert done == {name for name, took in seconds.items() if took < 8} - {failing}


def test_changes_that_are_not_committed_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "ROOT", tmp_path)
    code = tmp_path / "tests" / "a.py"
    code.parent.mkdir()
    names = []
    for step in ("", "git init -q", "git add .", "git -c user.name=a -c user.email=a@b.c commit -qm a", "1", "2"):
        if step.startswith("git"):
            subprocess.run(step.split(), cwd=tmp_path, check=True)
        else:
            code.write_text(step)
        if not step.startswith(("git init", "git add")):
            names.append(commits.commit())
    assert names[0].startswith("files-")
    assert [name.endswith(commits.DIRTY) for name in names] == [False, False, True, True]
    assert len(set(names)) == 4
