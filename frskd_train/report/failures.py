"""What can fail between here and the Hub: what passes is tried again, the rest ends in one sentence."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import _http

from frskd_timm.errors import UserError

T = TypeVar("T")

# Broken connections are errors of the HTTP library that the client is built on, another one from version to version.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
_ATTEMPTS = 4
_LONGEST_WAIT = 300  # seconds that a server may ask for before the user is told to come back later
_ANSWER_SECONDS = 30.0  # of silence after which a request has failed; HF_HUB_DOWNLOAD_TIMEOUT where that is longer
# Files are sent at the same time, and the first that finds nobody closes the client of all; the others then say this.
_CLOSED = ("client has been closed", "'NoneType' object has no attribute")


class Altered(Exception):
    """A file came back other than it was sent."""


class Silent(Exception):
    """A request got no answer in time."""


@contextmanager
def bounded_waiting() -> Iterator[None]:
    """Within it, a request that gets no answer in time fails at once.

    The client by itself waits for good, or, where it has a limit, tries again by itself, which would multiply with the
    attempts made here.
    """
    seconds = max(_ANSWER_SECONDS, constants.HF_HUB_DOWNLOAD_TIMEOUT)
    factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)  # a user's own may be set

    def bounded() -> Any:
        client: Any = factory()
        send = client.send

        def send_in_time(request: Any, **options: Any) -> Any:
            limits = request.extensions.setdefault("timeout", {})
            limits.update({kind: limits.get(kind) or seconds for kind in ("connect", "read", "write")})
            try:
                return send(request, **options)
            except _TransportError as error:
                if any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__):
                    raise Silent(f"{seconds:g} seconds") from error
                raise

        client.send = send_in_time
        return client

    set_client_factory(bounded)
    try:
        yield
    finally:
        set_client_factory(factory)


def patiently(call: Callable[[], T], repo_id: str, api: HfApi, once: bool = False) -> T:
    """Calls until it works, as long as what fails may pass; then raises the sentence for it.

    A Hub that takes requests and never answers is given up after two minutes: four times 30 seconds, or four times
    HF_HUB_DOWNLOAD_TIMEOUT seconds where that is longer.

    Args:
        call: What to do; must be safe to repeat.
        repo_id: What it is done to.
        api: The client that does it.
        once: Not safe to repeat once the commit has been sent and no answer came.

    Raises:
        UserError: What went wrong and what to do next.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with bounded_waiting():
                return call()
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, _TransportError, Altered, Silent) as error:
            cause = _cause(error)
            wait = _wait(cause, attempt)
            unknown = once and _sends_commit(cause) and not isinstance(cause, HfHubHTTPError)
            if wait is None or unknown or attempt == _ATTEMPTS - 1 or wait > _LONGEST_WAIT:
                raise UserError(_sentence(cause, repo_id, api, unknown)) from None
            time.sleep(wait)
    raise AssertionError("unreachable")


def _sentence(error: BaseException, where: str, api: HfApi, unknown: bool) -> str:
    """What went wrong and what to do next, without the client's words, which may quote headers."""
    again = "run the same command again later, it goes on where it stopped"
    if unknown:
        return f"The answer to the pull request for {where} never came: look at its discussions before trying again."
    if isinstance(error, Altered):
        return f"What {where} gives back is not what was sent ({error}): {again}, and do not use that commit."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be published: unset it and run the same command again."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "The Hub does not accept the token (401): run `hf auth login` again, or set HF_TOKEN to a valid one."
    if status == 403:
        return (
            f"The token may not write to {where} (403): use one with write permission for it, name a repository of"
            " your own, or offer a pull request with --create-pr."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{where} has no such revision: give a branch name."
    if status in (401, 404):
        return f"{where} was not found ({status}): check its name, and that the token may see it."
    if status in (409, 412):
        return f"{where} was changed by someone else meanwhile ({status}): {again}."
    if status == 413:
        return "The Hub refuses files of this size (413): export the student in half precision, or make it smaller."
    if status == 429:
        return f"The Hub asks to slow down (429): wait {_retry_after(error) or 'a few minutes'}, then {again}."
    if status is not None and status >= 500:
        return f"The Hub has trouble of its own ({status}): {again}."
    if status is not None:
        return f"The Hub refuses the upload to {where} ({status}): check the folder and the name, then {again}."
    if isinstance(error, Silent):
        return f"{api.endpoint} gave no answer within {error}, {_ATTEMPTS} times: check the network, then {again}."
    if isinstance(error, (_TransportError, ConnectionError)):
        return f"The Hub cannot be reached at {api.endpoint}: check the network, then {again}."
    if isinstance(error, json.JSONDecodeError):
        return f"{api.endpoint} answers nothing that a Hub would: check HF_ENDPOINT and proxies, then {again}."
    text = " ".join(str(error).split()).replace(str(api.token), "***")
    return f"Publishing to {where} failed ({type(error).__name__}: {text[:200]}): {again}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _cause(error: BaseException) -> BaseException:
    """The answer or the broken connection behind what the client makes of it."""
    kinds = (HfHubHTTPError, OfflineModeIsEnabled, Silent, _TransportError)
    for found in _chain(error):
        if isinstance(found, kinds):
            return found
        if any(words in str(found) for words in _CLOSED):
            return ConnectionError("lost")
    return error


def _wait(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait before trying again; None where that is of no use."""
    pause = float(2**attempt)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 400 and error.response.request.method == "PUT":  # the upload arrived damaged
            return pause
        if status in (408, 409, 412, 425, 429) or status >= 500:
            return max(pause, _retry_after(error) or 0)
        return None
    passing = (_TransportError, ConnectionError, Altered, Silent, json.JSONDecodeError)
    short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return pause if (isinstance(error, passing) or short) and not isinstance(error, OfflineModeIsEnabled) else None


def _retry_after(error: BaseException) -> float | None:
    value = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(value) if value.isdigit() else None


def _sends_commit(error: BaseException) -> bool:
    for found in _chain(error):
        try:
            return "/commit/" in found.request.url.path  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):  # no HTTP error, or one outside of a request
            continue
    return False
