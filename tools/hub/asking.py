"""Asks the Hub, again where the network fails, and says in one message why there is no answer.

All that talks to the Hub goes through `answered`: its client raises errors of six libraries, and may wait for ever.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from emma.base.errors import UserError

__all__ = ["READING", "UnreachableError", "answered"]

_ATTEMPTS = 5
_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0
# Seconds in which something has to happen; the client's own are unlimited for most requests.
_LIMITS = {"connect": 30.0, "read": 300.0, "write": 300.0, "pool": 300.0}
# Faults of the request itself (wrong token, wrong name) don't improve by waiting; these do.
_PASSING = {408, 425, 429, *range(500, 600)}
_KEPT = "What has arrived is kept; the same command continues from there"

READING = {
    401: "it does not show this data set without a token that may read it; accept its terms at {address} if it has any, and "
    "set HF_TOKEN or log in with `hf auth login`",
    403: "your token may not read it; accept its terms at {address}",
    404: "there is no such data set, revision or file, or your token may not see it; correct the name (the source's url)",
}
"""What refusals mean to someone who wants to read a data set."""


class UnreachableError(UserError):
    """The Hub gives no answer, to this question or any other: there is no network, or it is told to stay offline."""


def answered[T](
    repository: str,
    ask: Callable[[], T],
    reasons: Mapping[int, str] = READING,
    *,
    attempts: int = _ATTEMPTS,
    again: Callable[[int, Exception], object] | None = None,
) -> T:
    """What the Hub answers; asks again where the network fails or the Hub is busy.

    Args:
        repository: `owner/name`, for messages.
        ask: asks through `huggingface_hub`; what it has done before a fault must not hurt when it is done again.
        reasons: what a refusal means, by the code of the answer.
        attempts: how often it is asked.
        again: called before each further attempt, with the number of those that failed and the fault.

    Raises:
        UserError: the Hub refuses, or what answers is not the Hub.
        UnreachableError: nothing answers.
        OSError: a file here cannot be read or written.
    """
    from huggingface_hub import errors

    library = _library()
    for attempt in range(1, attempts + 1):
        try:
            return ask()
        except Exception as raised:
            error = _cause(raised, errors.LocalEntryNotFoundError)
            if isinstance(error, errors.HfHubHTTPError):
                if (code := error.response.status_code) not in _PASSING:
                    raise _refusal(repository, code, reasons, error) from None
            elif isinstance(error, errors.OfflineModeIsEnabled):
                raise UnreachableError(
                    f"{repository}: HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) forbids asking the Hub; unset it"
                ) from None
            elif isinstance(error, errors.LocalTokenNotFoundError):
                raise UserError(
                    f"{repository}: {reasons[401].format(address=_address(repository))}"
                ) from None
            elif isinstance(error, library.InvalidURL | library.UnsupportedProtocol):
                raise UnreachableError(
                    f"{repository}: {error}; correct HF_ENDPOINT and the proxy's address"
                ) from None
            elif isinstance(error, ValueError | KeyError):
                # The client's own complaints (a name, a card) are in words, a foreign answer's are not.
                foreign = isinstance(error, KeyError) or "JSON" in type(error).__name__
                told = (
                    f"what answered is not the Hub ({error}); is there a proxy or a login page on the way?"
                    if foreign
                    else str(error)
                )
                raise UserError(f"{repository}: {told}") from None
            elif not _of_the_network(error, library):
                raise
        if attempt == attempts:
            raise _interrupted(repository, attempts, error, library) from None
        if again is not None:
            again(attempt, error)
        time.sleep(min(_LONGEST_WAIT_SECONDS, _WAIT_SECONDS * 2 ** (attempt - 1)))
    raise AssertionError("no attempt")


@functools.cache
def _library() -> ModuleType:
    """The client's HTTP library (it has had two names), told to wait for no answer for ever."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import get_session

    session = get_session()
    hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], _limited]}
    kind = type(session)
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=None))
    return importlib.import_module(kind.__module__.partition(".")[0])


def _limited(request: Any) -> None:
    asked = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        name: min(asked.get(name) or limit, limit) for name, limit in _LIMITS.items()
    }


def _cause(error: Exception, hiding: type[Exception]) -> Exception:
    """What the client met, where it only says that a file is not in its cache."""
    while isinstance(error, hiding) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _of_the_network(error: Exception, library: ModuleType) -> bool:
    # What interrupts a transfer is a RuntimeError of the client's and of hf_xet's; its OSErrors without a number are about
    # what arrived, those with one about this machine's disk.
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, library.HTTPError | RuntimeError) or type(error).__module__.startswith(
        "huggingface_hub."
    )


def _interrupted(repository: str, attempts: int, error: Exception, library: ModuleType) -> UserError:
    told = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, library.ConnectError | library.ConnectTimeout):
        return UnreachableError(
            f"{repository}: the Hub cannot be reached ({told}); check the network, the proxy and HF_ENDPOINT. {_KEPT}"
        )
    return UserError(f"{repository}: interrupted {attempts} times, most recently by: {told}. {_KEPT}")


def _address(repository: str) -> str:
    return f"https://huggingface.co/datasets/{repository}"


def _refusal(repository: str, code: int, reasons: Mapping[int, str], error: Any) -> UserError:
    reason = reasons[code].format(address=_address(repository)) if code in reasons else None
    told = reason or error.server_message or " ".join(str(error).split())
    return UserError(f"{repository}: the Hub answered {code}: {told}")
