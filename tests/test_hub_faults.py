"""Publishing while the Hub or the network fails: success or one error message, and never half a student."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import huggingface_hub
import pytest
from conftest import ROOT
from hub_server import TOKEN, Fault
from huggingface_hub import constants
from published import REPO, make_student, push
from runs import wait_for

from frskd_timm.errors import UserError
from frskd_train.publish import repository, retries

REFUSED = b'{"errors": [{"message": "\\"license\\" must be one of apache-2.0, mit"}], "warnings": []}'


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("commit", 403), "write permission"),
        (Fault("preupload", 404), "was not found"),
        (Fault("repos/create", 409), None),
        (Fault("PUT", 413, 99), "half precision"),
        (Fault("commit", 429, 2, {"Retry-After": "3"}), None),
        (Fault("commit", 429, 99, {"Retry-After": "4000"}), "wait 4000 seconds, then"),
        (Fault("objects/batch", 500, 2), None),
        (Fault("PUT", 503, 3), None),
        (Fault("commit", 503, 3), None),
        (Fault("commit", 500, 99), "server error"),
        (Fault("validate-yaml", 502, 1), None),
        (Fault("validate-yaml", 400, body=REFUSED), r'\(400\): "license" must be one of apache-2.0, mit'),
        (Fault("PUT", "cut", 2), None),
        (Fault("commit", "cut", 2), None),
        (Fault("commit", "lost", 1), None),
        (Fault("PUT", "corrupt", 1), None),
        (Fault("GET .*safetensors", "corrupt", 1), None),
        (Fault("GET .*safetensors", "corrupt", 99), "other than what was sent"),
        (Fault("GET .*safetensors", "half", 1), None),
        (Fault("PUT", "stop"), "could not be reached"),
        (Fault("commit", "stop"), "could not be reached"),
    ],
    ids=lambda value: f"{value.pattern} {value.what} x{value.times}" if isinstance(value, Fault) else "",
)
def test_fault(hub, student, quick_clock, fault, sentence):
    hub.faults = [fault]
    if sentence is None:
        assert push(hub, student).changed
        assert len(hub.repos[REPO].history()) == 2
        assert fault.times == 0
        return
    with pytest.raises(UserError, match=sentence) as caught:
        push(hub, student)
    assert TOKEN not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert REPO not in hub.repos or set(hub.files(REPO)) in ({*()}, whole(student))
    if fault.what != "stop":
        hub.faults = []
        push(hub, student)
        assert len(hub.repos[REPO].history()) == 2


def whole(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pattern", ["GET /api/models", "PUT", "/commit/", "GET .*safetensors"])
def test_a_silent_hub_is_given_up(hub, student, quick_clock, monkeypatch, pattern):
    for module in (repository, retries):
        monkeypatch.setattr(module, "SILENCE", 0.3)
    monkeypatch.setattr(retries, "PATIENCE", 1.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults = [Fault(pattern, "silent", 99)]
    with pytest.raises(UserError, match="did not answer"):
        push(hub, student)
    assert 1 <= len(hub.asked("-> silent")) <= 15
    client = huggingface_hub.get_session()
    hooks = client.event_hooks["request"]  # other requests have no limit
    assert not any(isinstance(getattr(hook, "__self__", None), retries._Limits) for hook in hooks)
    assert client.timeout.read is None
    hub.faults = [Fault(pattern, "silent", 1)]
    push(hub, student)
    assert set(hub.files(REPO)) == whole(student)


def test_only_unanswered_requests_count_as_silence(monkeypatch):
    """An answer whose body takes long, or an upload that bypasses the client, is no silence."""
    monkeypatch.setattr(retries, "PATIENCE", 0.05)
    limits = retries._Limits()
    for _ in range(3):
        limits._before(None)
        limits._after(None)
        time.sleep(0.1)
    limits._before(None)
    time.sleep(0.1)
    with pytest.raises(retries.SilentError):
        limits._before(None)


def test_a_silent_hub_is_given_up_after_a_failed_connection(hub, monkeypatch):
    """huggingface_hub then makes another client, without limits."""
    for module in (repository, retries):
        monkeypatch.setattr(module, "SILENCE", 0.3)
    monkeypatch.setattr(retries, "PATIENCE", 1.0)
    hub.faults = [Fault("GET /api/models", "silent", 99)]

    def ask():
        huggingface_hub.close_session()
        threading.Event().wait(1)
        huggingface_hub.get_session().get(f"{hub.endpoint}/api/models/{REPO}")

    target = repository.Repository(repository.connect(TOKEN, hub.endpoint), REPO)
    began = time.monotonic()
    with pytest.raises(UserError, match="did not answer"):
        retries.with_retries(ask, target)
    assert time.monotonic() - began < 15  # the Hub is silent for twenty seconds each time


def test_a_client_that_another_thread_closed_is_a_lost_connection(hub, quick_clock, monkeypatch):
    """Between its check and its return, huggingface_hub's `get_session` may lose its client, and return None."""
    answers = iter([None, "the second client"])
    target = repository.Repository(repository.connect(TOKEN, hub.endpoint), REPO)
    assert retries.with_retries(lambda: next(answers).upper(), target) == "THE SECOND CLIENT"
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: None)
    assert retries.with_retries(lambda: "done", target) == "done"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_random_faults_never_publish_a_mixture(hub, student, tmp_path, quick_clock, seed):
    """Push a new version over an old one through random faults, then once more without faults."""
    draw = random.Random(seed)
    push(hub, student)
    old = hub.files(REPO)
    folder = tmp_path / "student"
    make_student(folder, "test_resnet", 64, seed=seed + 1)
    hub.faults = [
        Fault(
            draw.choice(["GET /api", "HEAD|GET /tester", "validate", "preupload", "batch", "PUT", "/commit/", ""]),
            draw.choice([429, 500, 502, 503, "cut", "lost", "half", "corrupt"] * 3 + [401, 403, 404, 409, 412, 413]),
            draw.randint(1, 4),
            {"Retry-After": str(draw.randint(0, 5))} if draw.random() < 0.3 else {},
        )
        for _ in range(draw.randint(1, 4))
    ]
    sentence = ""
    try:
        push(hub, folder)
    except UserError as error:
        sentence = str(error)
    assert len(sentence.splitlines()) <= 1
    assert TOKEN not in sentence
    between = hub.files(REPO)
    hub.faults = []
    push(hub, folder)
    new = hub.files(REPO)
    assert between == new or (between == old and sentence)
    assert new["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub.repos[REPO].history()) == 3


def test_ctrl_c_ends_a_stuck_upload_with_one_sentence(hub, student, tmp_path):
    hub.faults = [Fault("PUT", "silent", 99)]
    env = hub.environment(tmp_path, TOKEN) | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, ROOT / "hub" / "push.py", student, "--repo-id", REPO],
            env=os.environ | env, stdout=said, stderr=said,
        )  # fmt: skip
    assert wait_for(lambda: hub.asked("PUT .*silent"), process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - began < 5
    text = (tmp_path / "said").read_text()
    assert text.count("error:") == 1
    assert "interrupted" in text
    assert "Traceback" not in text
    assert hub.files(REPO) == {}


def test_the_wait_is_the_one_that_the_hub_asks_for(hub, student, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.faults = [Fault("commit", 429, 2, {"Retry-After": "7"})]
    assert push(hub, student).changed
    assert waits == [7, 7]


def test_a_token_in_an_unknown_error_is_hidden(hub, quick_clock):
    target = repository.Repository(repository.connect(TOKEN, hub.endpoint), REPO)

    def fail():
        raise RuntimeError(f"Illegal header value b'Bearer {TOKEN}'")

    with pytest.raises(UserError) as caught:
        retries.with_retries(fail, target)
    assert TOKEN not in str(caught.value)
