"""A secret or key that is set has to say something: what is blank, unreadable or badly written is an error."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltsft.errors import ConfigError
from tasks.credentials import CERTIFICATES, SECRETS, check_credentials, read_api_keys
from tasks.releases import serving
from tasks.settings import read_limits

KEY = "a-key-of-sixteen-or-more"
OTHER = "another-key-of-some-length"


def keys_of(content: bytes, folder: Path) -> list[str]:
    file = folder / "keys"
    file.write_bytes(content)
    return read_api_keys({"LTSFT_SERVE_API_KEYS_FILE": str(file)})


@pytest.mark.parametrize("value", ["", " ", ",", " , \t,", "\u00a0"])
def test_keys_that_are_set_and_give_no_key_are_an_error(value: str) -> None:
    with pytest.raises(ConfigError, match="LTSFT_SERVE_API_KEYS is set and gives no key"):
        read_api_keys({"LTSFT_SERVE_API_KEYS": value})


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"# comment\n  # another\n", b" \t\r\n"])
def test_a_file_that_gives_no_key_is_an_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LTSFT_SERVE_API_KEYS_FILE: .*keys is set and gives no key"):
        keys_of(content, tmp_path)


@pytest.mark.parametrize("path", ["", "  ", "/nowhere/keys", "{tmp}", "/dev/zero", "{tmp}/keys/below"])
def test_a_key_file_that_cannot_be_read_is_told_in_one_line(path: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    with pytest.raises(ConfigError, match="LTSFT_SERVE_API_KEYS_FILE") as caught:
        read_api_keys({"LTSFT_SERVE_API_KEYS_FILE": path.format(tmp=tmp_path)})
    assert len(str(caught.value).splitlines()) == 1


def test_comments_and_a_byte_order_mark_are_no_part_of_a_key(tmp_path: Path) -> None:
    content = f"\ufeff{KEY}\r\n\r\n# the key of the other team\n  {OTHER}  \n".encode()
    assert keys_of(content, tmp_path) == [KEY, OTHER]
    assert keys_of(f"# a comment\n{KEY}".encode(), tmp_path) == [KEY]
    assert read_api_keys({}) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (KEY.encode("utf-16"), "not UTF-8 (UTF-16)"),
        (KEY.encode("utf-16-be"), "signs of ASCII"),
        (f"{KEY}é".encode("latin-1"), "not UTF-8 (byte 0xe9"),
        (f"{KEY}é".encode(), "signs of ASCII"),
        (f"{KEY} # mine".encode(), "a comment stands in a line of its own"),
        (f"{KEY}\nshort".encode(), "keys:2: an API key has at least 16 characters"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "Latin-1", "not ASCII", "a comment behind", "short"],
)
def test_another_encoding_and_bad_keys_are_told_without_the_key(content: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        keys_of(content, tmp_path)
    assert told in str(caught.value)
    assert KEY not in str(caught.value)
    assert "short" not in str(caught.value).replace("is shorter", "")
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_any_bytes_of_a_key_file_give_keys_or_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        keys = keys_of(content, tmp_path_factory.getbasetemp())
    except ConfigError as error:
        lines, keys = str(error).splitlines(), [KEY]
    else:
        lines = ["read"]
    assert len(lines) == 1
    assert keys
    assert all(len(key) >= 16 and key.isascii() and key.isprintable() and " " not in key for key in keys)


@pytest.mark.parametrize("name", [*SECRETS, *CERTIFICATES])
@pytest.mark.parametrize("value", ["", "  ", "\n"])
def test_a_secret_or_certificate_that_is_set_and_blank_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is set and empty"):
        check_credentials({name: value})


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_certificate_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name}: {tmp_path}/ca.pem: No such file"):
        check_credentials({name: f"{tmp_path}/ca.pem"})
    (tmp_path / "ca.pem").write_text("x")
    check_credentials({name: f"{tmp_path}/ca.pem", **dict.fromkeys(SECRETS, "x")})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("LTSFT_SERVE_API_KEY", KEY, "there is no such setting; allowed are LTSFT_SERVE_API_KEYS, "),
        ("ltsft_serve_api_keys", KEY, "there is no such setting"),
        ("LTSFT_SERVE_MAX_TEXTS", " ", "valid integer"),
        ("LTSFT_SERVE_STOP_SECONDS", "inf", "less than or equal to 31536000"),
        ("LTSFT_SERVE_REQUEST_SECONDS", "nan", "less than or equal to 31536000"),
    ],
)
def test_a_slip_in_the_name_or_value_of_a_servers_setting_is_an_error(name: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_limits({name: value})
    assert name in str(caught.value)
    assert told in str(caught.value)
    assert KEY not in str(caught.value)
    assert read_limits({"LTSFT_SERVE_SERVICE_HOST": "10.0.0.1", "LTSFT_SERVE_PORT": "tcp://10.0.0.1:80"}) is not None


def test_no_port_is_opened_without_the_keys_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ltsft.project.project import ProjectRef

    opened: list[object] = []
    monkeypatch.setattr(serving, "serve_app", lambda *_, **__: opened.append(1))
    monkeypatch.setenv("LTSFT_SERVE_API_KEYS", f"{KEY},")
    monkeypatch.setenv("LTSFT_SERVE_API_KEYS_FILE", str(tmp_path / "empty"))
    (tmp_path / "empty").touch()
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match="gives no key"):
        serving.run_service(ProjectRef(file="/nowhere.yaml"), host="127.0.0.1", port=0)
    assert not opened
    assert KEY not in caplog.text


def test_the_servers_of_prefect_and_mlflow_do_not_start_with_a_blank_secret() -> None:
    def start(value: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tasks.credentials", "echo", "started"]
        environment = {
            "PREFECT_SERVER_API_AUTH_STRING": value,
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert start("user:password").stdout == "started\n"
    refused = start(" ")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.splitlines() == [
        "echo is not started: the environment has a wrong setting: PREFECT_SERVER_API_AUTH_STRING is set and empty; "
        "give it a value, or unset it"
    ]
