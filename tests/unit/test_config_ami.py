"""AMI in the configuration: its keys, its secret, and what ``fastagi check`` tells of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastagi import check, config
from fastagi.config import Ami, load
from fastagi.errors import ConfigError
from tests.unit.test_ami import ALL, GREETING, SECRET, WELCOME, answer, listener

AMI = "asterisk: {{ami: {{username: fastagi, secret_file: {secret}{more}}}}}\n"


@pytest.fixture
def ami(tmp_path: Path) -> Callable[..., Ami]:
    """What is read of a file with these keys; the secret is where it belongs."""

    def ami(more: str = "", secret: bytes | None = SECRET.encode()) -> Ami:
        path = tmp_path / "ami.secret"
        if secret is not None:
            path.write_bytes(secret)
        file = tmp_path / "fastagi.yaml"
        file.write_text(AMI.format(secret=path, more=more and f", {more}"))
        found = load(file).ami
        assert found is not None
        return found

    return ami


# Keys


def test_two_keys_are_enough(ami: Callable[..., Ami], tmp_path: Path) -> None:
    assert ami() == Ami("127.0.0.1", 5038, "fastagi", tmp_path / "ami.secret", tls=False, ca=None)


@pytest.mark.parametrize(
    ("more", "field", "value"),
    [
        ("host: 192.0.2.7", "host", "192.0.2.7"),
        ('host: "2001:db8::7"', "host", "2001:db8::7"),
        ("host: pbx-1.example.net", "host", "pbx-1.example.net"),
        ("port: 65535", "port", 65535),
        ("tls: yes", "tls", True),
        ("tls: yes, ca: /etc/fastagi/pbx.pem", "ca", Path("/etc/fastagi/pbx.pem")),
    ],
)
def test_good_values(ami: Callable[..., Ami], more: str, field: str, value: object) -> None:
    assert getattr(ami(more), field) == value


HOST = "an IP address or a host name, at most 253 letters, digits, - . and :, is allowed"
NAME = "1 to 80 letters, digits, _ . or -, is allowed"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("host: ''", f"host is '': {HOST}"),
        ("host: 'a b'", f"host is 'a b': {HOST}"),
        ('host: "pbx\\nx"', f"host is 'pbx\\nx': {HOST}"),
        ("host: pbx_1", f"host is 'pbx_1': {HOST}"),
        ('host: "127.0.0.1:5038"', f"host is '127.0.0.1:5038': {HOST}"),
        ('host: "::::"', f"host is '::::': {HOST}"),
        ("host: '-'", f"host is '-': {HOST}"),
        ("host: a..b", f"host is 'a..b': {HOST}"),
        ("host: a-.b", f"host is 'a-.b': {HOST}"),
        ("host: a.", f"host is 'a.': {HOST}"),
        ("ca: /etc/ca.pem", "ca stands beside tls: no, and nothing would be encrypted: it needs tls: yes"),
        ("tls: no, ca: /a", "ca stands beside tls: no, and nothing would be encrypted: it needs tls: yes"),
        (f"host: {'a' * 254}", "host is 'aaa"),
        ("port: 65536", "port is 65536: a whole number from 1 to 65535 is allowed"),
        ("port: '5038'", "port is the text '5038': a whole number from 1 to 65535 is allowed"),
        ("port: 50.5", "port is 50.5: a whole number from 1 to 65535 is allowed"),
        ("tls: 1", "tls is 1: yes or no is allowed"),
        ("ca: pbx.pem", "ca is 'pbx.pem': an absolute path is allowed"),
        ("secret: x", "secret is not a key here (did you mean secret_file?)"),
        ("read: call", "read is not a key here: host, port, username, secret_file, tls and ca are allowed"),
    ],
)
def test_bad_values(ami: Callable[..., Ami], more: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ami(more)
    [fault] = caught.value.faults
    assert fault.startswith(f"fastagi.yaml, line 1: asterisk / ami / {sentence}") and fault.isprintable()


@pytest.mark.parametrize(
    "name", ["''", "fast agi", '"fastagi\\nSecret: x"', "a:b", "é", "a" * 81], ids=range(6)
)
def test_a_user_name_has_one_form(tmp_path: Path, name: str) -> None:
    file = tmp_path / "fastagi.yaml"
    file.write_text(f"asterisk:\n  ami:\n    username: {name}\n    secret_file: /x\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    [fault] = caught.value.faults
    assert fault.startswith("fastagi.yaml, line 3: asterisk / ami / username is ") and fault.endswith(NAME)


def test_originate_goes_through_ami(tmp_path: Path) -> None:
    file = tmp_path / "fastagi.yaml"
    file.write_text("asterisk:\n  recall: originate\n  ami: {username: a, secret_file: /x}\n")
    read = load(file)
    assert read.originate and read.ami
    file.write_text("asterisk: {recall: callfile}\n")
    assert not load(file).originate


# The secret


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        ("gehört\n".encode(), "gehört"),
        (b" of blanks ", " of blanks "),
        (b"x" * 1000, "x" * 1000),
    ],
)
def test_a_secret_is_one_line(ami: Callable[..., Ami], content: bytes, secret: str) -> None:
    assert ami(secret=content).secret() == secret


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, ", the AMI secret, cannot be read: No such file or directory"),
        (b"\xff\xfe", ", the AMI secret, cannot be read: it is no UTF-8"),
        (b"", " holds no AMI secret: one line of printable text, at most 1000 bytes, is needed"),
        (b"\n", " holds no AMI secret: "),
        (b"one\ntwo\n", " holds no AMI secret: "),
        (b"x\rAction: Command", " holds no AMI secret: "),
        (b"x\x00", " holds no AMI secret: "),
        (b"x" * 1001, " holds no AMI secret: "),
    ],
)
def test_what_is_no_secret(
    ami: Callable[..., Ami], tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ami(secret=content).secret()
    [fault] = caught.value.faults
    assert fault.startswith(f"{tmp_path}/ami.secret{sentence}") and fault.isprintable()
    assert "Command" not in fault and "two" not in fault


def test_a_folder_is_no_secret(ami: Callable[..., Ami], tmp_path: Path) -> None:
    (tmp_path / "ami.secret").mkdir()
    with pytest.raises(ConfigError, match="the AMI secret, cannot be read: Is a directory"):
        ami(secret=None).secret()


# What check tells


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., dict[str, tuple[str, str]]]:
    """Each check with its result and its sentence; ``spool`` is there or is not."""

    def told(
        port: int, secret: str | None = SECRET, recall: str = "callfile", mode: int = 0o640
    ) -> dict[str, tuple[str, str]]:
        path = tmp_path / "ami.secret"
        if secret is not None:
            path.write_text(secret)
            path.chmod(mode)
        file = tmp_path / "fastagi.yaml"
        file.write_text(
            f"store: {tmp_path}/fastagi.db\nasterisk:\n  spool: {tmp_path}/spool\n  temp: {tmp_path}/temp\n"
            f"  recall: {recall}\n  ami: {{port: {port}, username: fastagi, secret_file: {path}}}\n"
        )
        return {finding.check: (str(finding.result), finding.sentence) for finding in check.findings(file)}

    return told


def test_check_logs_in(told: Callable[..., dict[str, tuple[str, str]]]) -> None:
    with listener(*WELCOME, answer(*ALL)) as port:
        assert told(port)["ami"] == ("ok", f"AMI lets us in as fastagi at 127.0.0.1:{port}")


def test_check_tells_of_a_password_that_is_refused_and_not_the_password(
    told: Callable[..., dict[str, tuple[str, str]]],
) -> None:
    refuses = answer("Message: Authentication failed", response="Error")
    with listener(GREETING, answer("Challenge: 1"), refuses) as port:
        found = told(port)
    result, sentence = found["ami"]
    assert result == "fault" and "Authentication failed" in sentence and f"127.0.0.1:{port}" in sentence
    assert not any(SECRET in sentence for _, sentence in found.values())


@pytest.mark.parametrize("mode, open_", [(0o600, False), (0o640, False), (0o644, True)])
def test_check_tells_of_a_secret_that_everybody_may_read(
    told: Callable[..., dict[str, tuple[str, str]]], tmp_path: Path, mode: int, open_: bool
) -> None:
    sentence = f"{tmp_path}/ami.secret is open to everybody: chmod o= closes it"
    assert told(1, mode=mode).get("ami secret") == (("note", sentence) if open_ else None)


def test_check_tells_of_a_secret_that_is_not_there(
    told: Callable[..., dict[str, tuple[str, str]]], tmp_path: Path
) -> None:
    result, sentence = told(1, secret=None)["ami"]
    assert (result, sentence.split(":")[0]) == (
        "fault",
        f"{tmp_path}/ami.secret, the AMI secret, cannot be read",
    )


def test_check_tells_nothing_of_ami_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "fastagi.yaml"
    file.write_text(f"store: {tmp_path}/fastagi.db\n")
    assert "ami" not in {finding.check for finding in check.findings(file)}


def test_folders_are_needed_for_call_files_alone(
    told: Callable[..., dict[str, tuple[str, str]]], tmp_path: Path
) -> None:
    with listener(*WELCOME, answer(*ALL)) as port:
        found = told(port)
    assert found["spool"][0] == found["temp"][0] == "fault"
    with listener(*WELCOME, answer(*ALL)) as port:
        assert not {"spool", "temp", "user"} & told(port, recall="originate").keys()
    read = load(tmp_path / "fastagi.yaml")
    assert {finding.check for finding in check.door(read)} == {"store"}


def test_whose_a_spool_is_that_is_not_used_does_not_matter(
    told: Callable[..., dict[str, tuple[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be an Asterisk on this machine that is not ours."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "temp").mkdir()
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    assert "user" in told(1)
    assert "user" not in told(1, recall="originate")


def test_a_secret_stands_in_no_other_place(ami: Callable[..., Ami]) -> None:
    """Nothing that prints the configuration prints it."""
    assert SECRET not in repr(ami()) and "secret" not in config.Ami.__dataclass_fields__
