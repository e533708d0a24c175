"""What lets somebody in: secrets and certificates of the environment, and the keys of a server.

Whatever is set has to say something: a secret that is set and blank is an open door or a door that nobody can open, and
a certificate that is not read would end as another error, far away. Run as a program it looks at the environment and
becomes the command that follows, which is how the servers of Prefect and MLflow start:

    python -m tasks.credentials prefect server start
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from ltsft.errors import ConfigError

__all__ = ["check_credentials", "read_api_keys"]

SECRETS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
)
"""Variables that are an error when they are set and blank."""

CERTIFICATES = (
    "AWS_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "PREFECT_API_SSL_CERT_FILE",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
"""Variables that name a file which has to be there and readable, or a folder of such files."""

KEY_LENGTH = 16
_KEY = re.compile(r"[!-\"$-~][!-~]*")  # visible ASCII, which a header can carry; # begins a comment
_KEYS_FILE_BYTES = 1024 * 1024
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def check_credentials(environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that no secret is set and blank, and that certificates can be read.

    Raises:
        ConfigError: naming every variable that is wrong, never a value of a secret.
    """
    problems = [
        f"{name} is set and empty; give it a value, or unset it"
        for name in (*SECRETS, *CERTIFICATES)
        if name in environment and not environment[name].strip()
    ]
    for name in CERTIFICATES:
        if environment.get(name, "").strip():
            problems += _unreadable(name, Path(environment[name]))
    if problems:
        raise ConfigError("the environment has a wrong setting: " + "; ".join(problems))


def main(command: list[str]) -> None:
    """Check the environment, then become a command.

    Raises:
        SystemExit: a secret or a certificate is wrong; says which.
    """
    try:
        check_credentials()
    except ConfigError as error:
        sys.exit(f"{command[0]} is not started: {error}")
    os.execvp(command[0], command)  # noqa: S606


def _unreadable(name: str, path: Path) -> list[str]:
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        return [f"{name}: {path}: {error.strerror}"]
    return []


def read_api_keys(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Give the keys that may ask a server: those of ``LTSFT_SERVE_API_KEYS`` and of ``LTSFT_SERVE_API_KEYS_FILE``.

    The first has keys with commas between them. The second names a file in UTF-8 with a key a line; empty lines and
    lines that begin with ``#`` are left out, and a byte order mark at its start.

    Returns:
        The keys; none if neither variable is set, which lets everybody ask.

    Raises:
        ConfigError: a variable is set and gives no key, the file cannot be read or is in another encoding, or a key is
            shorter than 16 characters or holds what a header cannot carry. No key is shown.
    """
    keys: list[str] = []
    name = "LTSFT_SERVE_API_KEYS"
    if name in environment:
        found = [(name, part.strip()) for part in environment[name].split(",") if part.strip()]
        keys += _checked(found, name, "give keys with commas between them, or unset it")
    name = "LTSFT_SERVE_API_KEYS_FILE"
    if name in environment:
        told = f"{name}: {environment[name].strip()}"
        lines = _key_lines(environment[name].strip(), told)
        keys += _checked(lines, told, "give a file with a key a line, or unset it")
    return keys


def _key_lines(path: str, told: str) -> list[tuple[str, str]]:
    if not path:
        return []
    try:
        with Path(path).open("rb") as file:
            content = file.read(_KEYS_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{told}: {error.strerror}") from error
    if len(content) > _KEYS_FILE_BYTES:
        raise ConfigError(f"{told}: larger than {_KEYS_FILE_BYTES} bytes, which is no file of keys")
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        other = _OTHER_ENCODINGS.get(content[:2], f"byte 0x{content[error.start]:02x} at {error.start} says so")
        raise ConfigError(f"{told}: not UTF-8 ({other}); save the file as UTF-8") from None
    lines = [line.strip() for line in text.splitlines()]
    return [(f"{told}:{n}", line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]


def _checked(found: list[tuple[str, str]], name: str, remedy: str) -> list[str]:
    if not found:
        raise ConfigError(f"{name} is set and gives no key; {remedy}")
    for place, key in found:
        if len(key) < KEY_LENGTH:
            raise ConfigError(f"{place}: an API key has at least {KEY_LENGTH} characters; this one is shorter")
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{place}: an API key has letters, digits and signs of ASCII, no spaces, and no # at its start; a "
                "comment stands in a line of its own"
            )
    return [key for _, key in found]


if __name__ == "__main__":
    main(sys.argv[1:])
