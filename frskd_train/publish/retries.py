"""Retries of calls to the Hub after temporary failures, and sentences about the others."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from frskd_timm.errors import UserError, first_line
from frskd_train.publish.repository import SILENCE, AlteredError, Repository

T = TypeVar("T")

_ATTEMPTS = 4
PATIENCE = 120  # seconds without an answer after which there are no more retries
_LONGEST_WAIT = 300  # longest wait in seconds at the request of a server
# Base class of errors of the HTTP library in huggingface_hub; which library depends on its version.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_AGAIN = "run the same command again later to continue where it stopped"


class SilentError(Exception):
    """The Hub has not answered for `PATIENCE` seconds."""


class _Limits:
    """Time limits in huggingface_hub's shared client, which by default waits forever; `undo` removes them.

    Its hooks also end retries of requests that the Hub does not answer.
    """

    def __init__(self) -> None:
        self._changed: list[tuple[Any, Any, Any]] = []
        self._asked: float | None = None  # when the first request since the last answer was sent

    def apply(self) -> None:
        """Limit the present client, if there is one; huggingface_hub makes another when a connection fails."""
        client = huggingface_hub.get_session()
        if client is None or any(client is limited for limited, _, _ in self._changed):
            return
        hooks = client.event_hooks
        self._changed.append((client, hooks, client.timeout))
        before, after = [*hooks.get("request", []), self._before], [*hooks.get("response", []), self._after]
        client.event_hooks, client.timeout = {"request": before, "response": after}, SILENCE

    def undo(self) -> None:
        for client, hooks, timeout in self._changed:
            client.event_hooks, client.timeout = hooks, timeout

    def _before(self, _: Any) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
        elif time.monotonic() - self._asked > PATIENCE:
            raise SilentError

    def _after(self, _: Any) -> None:
        self._asked = None


def with_retries(call: Callable[[], T], hub: Repository, once: bool = False) -> T:
    """Call a function, and retry after failures that may be temporary.

    huggingface_hub itself retries uploads and downloads; other requests are attempted up to four times. If the Hub does
    not answer, it gives up after two minutes. With `once`, a commit that was sent but not answered is not sent again.
    The call runs in a thread, so that Ctrl-C reaches the caller immediately.

    Raises:
        UserError: The call failed; the message says what went wrong and what to do next.
    """
    attempt, limits = 0, _Limits()
    try:
        while True:
            attempt += 1
            try:
                return _in_thread(call, limits.apply)
            except (OSError, RuntimeError, ValueError, _TransportError, AlteredError, SilentError) as error:
                cause = _cause(error)
                wait = _wait(cause, attempt)
                if once and _lost_commit(cause):
                    text = f"The Hub did not confirm the pull request for {hub.repo_id}"
                    raise UserError(f"{text}: check whether it was created before you try again.") from None
                if wait is None or attempt == _ATTEMPTS or wait > _LONGEST_WAIT:
                    raise UserError(_sentence(cause, hub.repo_id, hub.api)) from None
                time.sleep(wait)
    finally:
        limits.undo()


def _in_thread(call: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    """Call a function in a thread that does not keep the process alive, and `meanwhile` every half second."""
    meanwhile()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            # The Hub's client, which another thread has closed.
            closed = isinstance(error, AttributeError) and error.obj is None and error.name is not None
            future.set_exception(ConnectionError(str(error)) if closed else error)

    threading.Thread(target=run, daemon=True).start()
    while not wait_for_futures([future], timeout=0.5).done:
        meanwhile()
    return future.result()


def _sentence(error: BaseException, repo_id: str, api: HfApi) -> str:
    """Describe what went wrong and what to do next, without the client's message, which may quote headers."""
    if isinstance(error, AlteredError):
        return f"{repo_id} returns something other than what was sent ({error}): do not use that commit, and {_AGAIN}."
    if isinstance(error, json.JSONDecodeError):
        return f"{api.endpoint} does not answer like a Hub: check HF_ENDPOINT and proxies, then {_AGAIN}."
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, (_TransportError, ConnectionError, SilentError)):
            return f"The Hub could not be reached at {api.endpoint}, or did not answer: check the network and {_AGAIN}."
        text = first_line(error)
        if token := api.token or huggingface_hub.get_token():
            text = text.replace(str(token), "***")
        return f"Publishing to {repo_id} failed ({type(error).__name__}: {text[:200]}): {_AGAIN}."
    status, seconds = error.response.status_code, _retry_after(error)
    pause = f"{seconds:.0f} seconds" if seconds else "a few minutes"
    if status == 404 or (isinstance(error, RepositoryNotFoundError) and status != 403):
        return f"{repo_id} was not found ({status}): check its name, and that the token may see it."
    if status >= 500:
        return f"The Hub has a server error ({status}): {_AGAIN}."
    changed = f"{repo_id} was changed by someone else meanwhile ({status}): {_AGAIN}."
    sentences = {
        401: "The Hub does not accept the token (401): run `hf auth login` again, or set HF_TOKEN to a valid one.",
        403: f"The token may not write to {repo_id} (403): use one with write permission, a repository of your own, or "
        "--create-pr to open a pull request.",
        409: changed,
        412: changed,
        413: "The Hub refuses files of this size (413): export the student in half precision, or make it smaller.",
        429: f"The Hub asks to slow down (429): wait {pause}, then {_AGAIN}.",
    }
    if reason := _reason(error):
        return f"The Hub refuses the upload to {repo_id} ({status}): {reason}"
    refused = f"The Hub refuses the upload to {repo_id} ({status}): check the folder and the name, then {_AGAIN}."
    return sentences.get(status, refused)


def _reason(error: HfHubHTTPError) -> str:
    """Return what the Hub says is wrong with a card's metadata, if it does."""
    try:
        found = [str(problem["message"]) for problem in error.response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        return ""
    return " ".join(" ".join(found).split())[:300]


def _cause(error: BaseException) -> BaseException:
    """Return the response or connection error that caused an error of the client."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (HfHubHTTPError, SilentError, _TransportError)):
            return found
        found = found.__cause__
    return error


def _wait(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt, or None if another one would not help."""
    if isinstance(error, SilentError):
        return None
    pause = 2.0 ** (attempt - 1)
    if not isinstance(error, HfHubHTTPError):
        return pause
    status = error.response.status_code
    damaged = status == 400 and error.response.request.method == "PUT"
    temporary = damaged or status in (408, 409, 412, 425, 429) or status >= 500
    return max(pause, _retry_after(error) or 0) if temporary else None


def _retry_after(error: HfHubHTTPError) -> float | None:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _lost_commit(error: BaseException) -> bool:
    """Return whether a commit was sent and the connection was lost before the answer."""
    request = getattr(error, "request", None) if isinstance(error, _TransportError) else None
    return request is not None and "/commit/" in request.url.path and not isinstance(error, HfHubHTTPError)
