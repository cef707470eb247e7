"""huggingface_hub's failures as one sentence each, with the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from qwen3q.errors import DiskError, SourceError
from qwen3q.models.catalog import suggest_releases

TRANSPORT_ERRORS: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)
"""What a broken connection raises: huggingface_hub changed its HTTP client twice (requests, httpx,
httpx2), but its own HTTP error always derives from the client's base class."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def explain_hub_errors(repo: str, revision: str, endpoint: str) -> Iterator[None]:
    """Raises SourceError or DiskError in place of whatever huggingface_hub raises inside.

    Args:
        repo: the Hub id that is asked for.
        revision: branch, tag or commit.
        endpoint: address of the Hub.
    """
    try:
        yield
    except HFValidationError:
        raise SourceError(f"{repo!r} is no Hub id.", "A Hub id is org/name.") from None
    except GatedRepoError:
        raise SourceError(
            f"{repo} is gated: the Hub gives it to accounts that accepted its terms.",
            f"Accept them at {endpoint}/{repo}, then set HF_TOKEN to a token of that account.",
        ) from None
    except RevisionNotFoundError:
        raise SourceError(
            f"{repo} has no revision {revision!r}.", f"See {endpoint}/{repo}/tree/main for a list."
        ) from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{repo} is not on the Hub at {endpoint}, or it is private.",
            f"{_did_you_mean(repo)}For a private model set HF_TOKEN to a token that may read it.",
        ) from None
    except EntryNotFoundError:
        raise SourceError(
            f"The Hub lists a file of {repo} that it does not have.", "Run it again."
        ) from None
    except HfHubHTTPError as error:
        raise _status_error(error.response.status_code, repo, endpoint) from None
    except TRANSPORT_ERRORS as error:
        raise _transport_error(error, endpoint) from None


def _status_error(status: int, repo: str, endpoint: str) -> SourceError:
    if status == 401:
        return SourceError(
            f"The Hub at {endpoint} does not accept this token.",
            f"Set HF_TOKEN to a valid one ({endpoint}/settings/tokens), or unset it.",
        )
    if status == 403:
        return SourceError(
            f"This token may not read {repo}.",
            f"Give it read access at {endpoint}/settings/tokens, or set HF_TOKEN to another.",
        )
    if status == 429:
        return SourceError(
            f"The Hub at {endpoint} refuses more requests for now (HTTP 429).",
            "Wait some minutes and run it again; what has arrived is kept.",
        )
    if status >= 500:
        return SourceError(
            f"The Hub at {endpoint} has trouble of its own (HTTP {status}).",
            "Run it again later; what has arrived is kept.",
        )
    return SourceError(f"The Hub at {endpoint} answered HTTP {status} for {repo}.")


def _transport_error(error: BaseException, endpoint: str) -> SourceError | DiskError:
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return DiskError(
            "The disk is full.", "Make room and run it again; what has arrived is kept."
        )
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return DiskError(
            f"{error.filename or 'The cache'} can't be written.",
            "Set HF_HOME to a folder of yours.",
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SourceError(
        f"There is no connection to the Hub at {endpoint}: {reason.rstrip('.')}.",
        "Check the network and HF_ENDPOINT and run it again; what has arrived is kept. "
        "HF_HUB_OFFLINE=1 uses only what is already downloaded.",
    )


def _did_you_mean(repo: str) -> str:
    near = suggest_releases(repo)
    return f"Did you mean {' or '.join(near)}? " if near else "Check the name. "
