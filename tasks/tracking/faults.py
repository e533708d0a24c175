"""Which fault it was: what MLflow, its database and its artifact store raise, as errors of ours that name it.

MLflow raises one class for nearly everything. What it was stands in the error code, and in the errors that it was
raised from: of the network, of the database, of the file system. Advice is given only where it fits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ltsft.errors import ServiceError, StoredFileError

_GONE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_NO_ENTRY = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_CHECK_UP = "check the tracking URI (LTSFT_TRACKING_URI, MLFLOW_TRACKING_URI) and that the service is up"
_CHECK_USER = "check the user and the password (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD)"
_FILES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EROFS: "the file system can only be read",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
}
_SQLITE = {
    "database or disk is full": "the disk is full",
    "readonly database": "this user may not write the database",
    "unable to open database file": "this user may not open the database, or its folder is gone",
    "database is locked": "another process holds the database",
    "file is not a database": "the database is damaged",
    "disk image is malformed": "the database is damaged",
}


def fault_of(error: Exception, *, place: str, action: str, told: str) -> ServiceError:
    """Say in our words what went wrong.

    Args:
        error: what was raised.
        place: where MLflow is, without a password.
        action: what could not be done.
        told: the text of the error, without a password.
    """
    first = f"MLflow at {place} could not {action}"
    code = str(getattr(error, "error_code", ""))
    if (why := _local_fault(error)) is not None:
        return ServiceError(f"{first}: {why} ({told})")
    if code in _GONE or _status(error) == 404:
        return StoredFileError(f"{first}, because it is not there: {told}")
    if code in _NO_ENTRY or _status(error) in (401, 403):
        return ServiceError(f"{first}: {told}; {_CHECK_USER}")
    if is_away(error):
        return ServiceError(f"{first}: {type(error).__name__}: {told}; {_CHECK_UP}")
    return ServiceError(f"{first}: {type(error).__name__}: {told}")


def is_away(error: BaseException) -> bool:
    """Say whether an error came from a service that does not answer: the network, a server's 5xx, a database's."""
    import requests
    import sqlalchemy.exc
    import urllib3

    kinds = (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        sqlalchemy.exc.OperationalError,
        ConnectionError,
        TimeoutError,
    )
    answered = 400 <= _status(error) < 500
    return not answered and (_status(error) >= 500 or any(isinstance(each, kinds) for each in _chain(error)))


def _local_fault(error: BaseException) -> str | None:
    """Name what is wrong with a disk or a file of this machine; None if it is something else."""
    for each in _chain(error):
        if type(each).__module__ == "sqlite3":
            return next((why for text, why in _SQLITE.items() if text in str(each)), None)
        if isinstance(each, OSError) and each.errno in _FILES:
            return f"{_FILES[each.errno]}: {each.filename}" if each.filename else _FILES[each.errno]
    return None


def _status(error: BaseException) -> int:
    """Give the status of an HTTP answer that an error stands for; 0 where there was none."""
    for each in _chain(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return 0


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an error and those that it was raised from or while handling."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
