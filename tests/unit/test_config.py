"""The configuration: what each key allows, every fault in one sentence with its line, and whose entry holds.

Beside this file, configs/ has one broken file for each message; its lines ``#! ...`` are the faults to tell.
"""

import random
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from fastagi import check, config, control
from fastagi.completion.model import Device, Extension, Limits, Number, Settings
from fastagi.config import Config, load, resolved, sections
from fastagi.directory import Directory, Pattern
from fastagi.errors import ConfigError
from fastagi.sip.trunk import Address, Side, Trunk

Read = Callable[[str | bytes], Config]
Faults = Callable[[str | bytes], list[str]]

BROKEN = sorted((Path(__file__).parent / "configs").glob("*.yaml"))


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str | bytes) -> Config:
        path = tmp_path / "fastagi.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path)

    return read


@pytest.fixture
def faults(read: Read) -> Faults:
    def faults(text: str | bytes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text)
        return caught.value.faults

    return faults


def entry(key: str, name: str, value: str) -> str:
    return f'extensions:\n  "{key}":\n    {name}: {value}\n'


# -------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_told_in_these_sentences(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    expected = [line[3:].decode() for line in lines if line.startswith(b"#! ")]
    assert expected, "the file names no fault"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.faults == [f"{path.name}, {sentence}" for sentence in expected]
    assert all(fault.isprintable() for fault in caught.value.faults)


def test_the_broken_files_are_there() -> None:
    assert len(BROKEN) >= 115
    assert {"all_at_once", "timer_is_text", "yaml_laughs"} <= {path.stem for path in BROKEN}


def test_all_faults_are_told_at_once_in_the_order_of_their_lines(faults: Faults) -> None:
    text = """\
defaults:
  cc_offer_timer: 0
trunks: here
extensions:
  "1000":
    cc_offer_timer: soon

    device: PJSIP/1000
  1001: {device: PJSIP/1000, nmae: Desk}
store: here
"""
    assert [fault.split(":")[0] for fault in faults(text)] == [
        "fastagi.yaml, line 2",
        "fastagi.yaml, line 3",
        "fastagi.yaml, line 6",
        "fastagi.yaml, line 9",
        "fastagi.yaml, line 9",
        "fastagi.yaml, line 10",
    ]


def test_a_fault_of_a_shared_mapping_names_each_entry_that_uses_it(faults: Faults) -> None:
    text = 'extensions:\n  "1000": &desk\n    cc_offer_timer: soon\n  "1001": *desk\n  "1002": {<<: *desk}\n'
    where = "is 'soon': a number of seconds from 1 to 604800 is allowed"
    assert faults(text) == [
        f'fastagi.yaml, line 3: extensions / "{number}" / cc_offer_timer {where}'
        for number in ("1000", "1001", "1002")
    ]


def test_a_wrong_entry_does_not_hide_that_its_device_is_another_ones_too(faults: Faults) -> None:
    text = "extensions:\n  1000: {device: PJSIP/a, cc_offer_timer: 0}\n  1001: {device: PJSIP/a}\n"
    assert [fault.split(" is ")[0].split(" names ")[0] for fault in faults(text)] == [
        'fastagi.yaml, line 2: extensions / "1000" / cc_offer_timer',
        'fastagi.yaml, line 3: extensions / "1001" / device',
    ]


# ---------------------------------------------------------------------------------------------- whole files


def test_a_missing_file_that_was_asked_for_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml")
    assert caught.value.faults == [f"{tmp_path}/none.yaml cannot be read: No such file or directory"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.faults == [f"{tmp_path} cannot be read: Is a directory"]


def test_a_file_is_at_most_1_mb(read: Read, faults: Faults) -> None:
    assert read(b"#" * 1_000_000).listen_port == 4573
    assert faults(b"#" * 1_000_001) == ["fastagi.yaml is too large: at most 1000000 bytes are allowed"]


def test_levels_beyond_any_recursion_limit_are_a_fault(faults: Faults) -> None:
    [fault] = faults("allow: " + "[" * 400_000)
    assert fault == "fastagi.yaml, line 1: the file cannot be read: at most 20 levels are allowed"


def documented(found: Config) -> None:
    assert (found.listen_host, found.listen_port) == ("127.0.0.1", 4573)
    assert found.allow == (ip_network("127.0.0.0/8"), ip_network("::1"))
    assert found.spool == Path("/var/spool/asterisk/outgoing")
    assert found.temp == Path("/var/spool/asterisk/tmp")
    assert found.store == Path("/var/lib/fastagi/fastagi.db")
    assert found.control == Path("/var/lib/fastagi/fastagi.sock")
    assert found.limits == Limits()
    assert found.directory.extension(Number("1000")) == Extension(Number("1000"), Settings())
    assert found.trunks == ()


def test_without_a_file_the_documented_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "fastagi.yaml")
    documented(load(None))


def test_the_default_file_is_read_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "fastagi.yaml")
    (tmp_path / "fastagi.yaml").write_text("fastagi: {listen: 127.0.0.1:4574}\n")
    assert load(None).listen_port == 4574
    (tmp_path / "fastagi.yaml").write_text("fastagi: {listen: here}\n")
    with pytest.raises(ConfigError):
        load(None)


def test_the_default_path() -> None:
    assert Path("/etc/fastagi/fastagi.yaml") == config.DEFAULT_PATH


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# nothing yet\n",
        "---\n",
        "{}",
        "\ufeff# with a byte order mark\n",
        "fastagi:\nasterisk:\ndefaults:\n  # cc_offer_timer: 30\nextensions:\ntrunks:\n",
    ],
)
def test_a_file_that_says_nothing_means_the_documented_defaults(read: Read, text: str) -> None:
    documented(read(text))


def test_the_example_of_the_documentation(read: Read) -> None:
    found = read("""\
fastagi:
  listen: 127.0.0.1:4573
  allow: [127.0.0.0/8, "::1"]
asterisk:
  spool: /var/spool/asterisk/outgoing
  temp: /var/spool/asterisk/tmp    # same file system as the spool
  recall: callfile                 # or originate
store: /var/lib/fastagi/fastagi.db
defaults: {cc_offer_timer: 20, poll_interval: 0.5}
extensions:
  "1000": {name: Reception, device: PJSIP/1000, dialstring: PJSIP/1000, cc_offer_timer: 60}
  "_2XXX": {ccbs_available_timer: 1200, cc_monitor_policy: never}
trunks:
  mxone: {listen: "udp:0.0.0.0:5070", peer: ["192.0.2.10:5060"], asterisk: "127.0.0.1:5060", endpoint: mxone}
""")
    assert found.directory.extension(Number("1000")) == Extension(
        Number("1000"), Settings(cc_offer_timer=60), "Reception", (Device("PJSIP/1000"),), "PJSIP/1000"
    )
    assert found.directory.extension(Number("2345")) == Extension(
        Number("2345"), Settings(ccbs_available_timer=1200, cc_monitor_policy="never")
    )
    assert found.directory.extension(Number("3000")) == Extension(Number("3000"), Settings())
    assert found.listen_port == 4573
    assert [trunk.name for trunk in found.trunks] == ["mxone"]


# ----------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("127.0.0.1:4573", "127.0.0.1", 4573),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ('"[::1]:65535"', "::1", 65535),
        ('"[::]:4573"', "::", 4573),
        ('"[2001:DB8:0::1]:4573"', "2001:db8::1", 4573),
    ],
)
def test_listen(read: Read, listen: str, host: str, port: int) -> None:
    found = read(f"fastagi: {{listen: {listen}}}")
    assert (found.listen_host, found.listen_port) == (host, port)


@pytest.mark.parametrize(
    "listen",
    [
        "4573",
        "':4573'",
        "'127.0.0.1:'",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:04573",
        "127.0.0.1:-1",
        "127.0.0.1:٤٥٧٣",
        "127.1:4573",
        "256.0.0.1:4573",
        "'[127.0.0.1]:4573'",
        "'[fe80::1%eth0]:4573'",
        "'[::1]'",
        "'127.0.0.1:4573 '",
        '"127.0.0.1:4573\\n"',
        "[127.0.0.1, 4573]",
        "",
    ],
)
def test_listen_refuses(faults: Faults, listen: str) -> None:
    [fault] = faults(f"fastagi:\n  listen: {listen}\n")
    assert fault.startswith("fastagi.yaml, line 2: fastagi / listen is ")


def test_allow(read: Read) -> None:
    found = read('fastagi: {allow: [10.1.0.0/16, 192.0.2.7, "2001:db8::/32", "::1"]}')
    assert found.allow == tuple(map(ip_network, ["10.1.0.0/16", "192.0.2.7/32", "2001:db8::/32", "::1/128"]))


@pytest.mark.parametrize(
    "network", ["10.0.0.1/8", "10.0.0.0/33", "localhost", "'fe80::1%eth0'", "10", "", "{}"]
)
def test_allow_refuses(faults: Faults, network: str) -> None:
    [fault] = faults(f"fastagi:\n  allow:\n    - 127.0.0.1\n    - {network}\n")
    assert fault.startswith("fastagi.yaml, line 4: fastagi / allow / item 2 is ")


def test_paths(read: Read) -> None:
    found = read(
        "asterisk: {spool: /a/out, temp: //a/./tmp}\nstore: /b/c.db\nfastagi: {control: /run/c.sock}"
    )
    assert (found.spool, found.temp) == (Path("/a/out"), Path("/a/tmp"))
    assert (found.store, found.control) == (Path("/b/c.db"), Path("/run/c.sock"))


def test_the_control_socket_is_beside_the_store(read: Read) -> None:
    assert read("store: /srv/cc/wishes.db").control == Path("/srv/cc/fastagi.sock")


@pytest.mark.parametrize(
    "path",
    [
        "here",
        "./here",
        "''",
        "/",
        "/folder/",
        "/folder/.",
        "/folder/..",
        "/..",
        '"/a\\0b"',
        '"/a\\nb"',
        '"/\\ud800"',
        "5",
        "",
    ],
)
@pytest.mark.parametrize("section", ["store: {}", "asterisk: {{spool: {}}}", "fastagi: {{control: {}}}"])
def test_paths_refuse(faults: Faults, section: str, path: Path) -> None:
    [fault] = faults(section.format(path))
    assert " is " in fault and "an absolute path" in fault


TIMER = (1, 604800)
BOUNDS = {
    "cc_offer_timer": TIMER,
    "cc_offer_repeat": (1, 10),
    "cc_recall_timer": (1, 600),
    "cc_max_agents": (1, 10000),
    "cc_retry_timer": (1, 86400),
    "cc_max_recalls": (1, 100),
    "cc_max_monitors": (1, 10000),
    "cc_guard_timer": (0, 3600),
    "poll_interval": (0.05, 60),
    "ccbs_available_timer": TIMER,
    "ccnr_available_timer": TIMER,
    "cc_offer_wait": (1, 30),
    "cc_max_requests": (1, 2000),
    "cc_max_offers": (1, 10000000),
    "history_days": (1, 36500),
}
COUNTS = {
    "cc_max_agents",
    "cc_max_recalls",
    "cc_max_monitors",
    "cc_offer_repeat",
    "cc_max_requests",
    "cc_max_offers",
}
POLICY = ("generic", "never")
# Asterisk's own (devicestate.c).
STATES = (
    "UNKNOWN", "NOT_INUSE", "INUSE", "BUSY", "INVALID", "UNAVAILABLE", "RINGING", "RINGINUSE", "ONHOLD",
)  # fmt: skip
CHOICES = {
    "cc_agent_policy": POLICY,
    "cc_monitor_policy": POLICY,
    "monitor": ("device", "hint"),
    "cc_recall_announce": ("off", "beep", "number"),
    "cc_available_devstate": STATES,
    "cc_offered_devstate": STATES,
    "cc_caller_requested_devstate": STATES,
    "cc_active_devstate": STATES,
    "cc_callee_ready_devstate": STATES,
    "cc_caller_busy_devstate": STATES,
    "cc_recalling_devstate": STATES,
    "cc_complete_devstate": STATES,
    "cc_failed_devstate": STATES,
}
TEXTS = {"cc_offer_digit": "5", "cc_recall_prefix": "Back: ", "cc_recall_alert_info": "<http://x>;info=alert"}
LIMITS = {field.name for field in fields(Limits)}


def test_every_setting_and_limit_is_a_key() -> None:
    keys = [*BOUNDS, *CHOICES, *TEXTS]
    assert sorted(keys) == sorted([field.name for field in fields(Settings)] + [*LIMITS])


def chosen(found: Config, name: str) -> object:
    settings = found.directory.extension(Number("1000")).settings
    return getattr(found.limits if name in LIMITS else settings, name)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(read: Read, faults: Faults, name: str) -> None:
    low, high = BOUNDS[name]
    for value in (low, high):
        assert chosen(read(f"defaults: {{{name}: {value}}}"), name) == value
    for value in (low - 1 if name in COUNTS else low - 0.01, high + 1 if name in COUNTS else high + 0.01):
        [fault] = faults(f"defaults:\n  {name}: {value}\n")
        assert fault.startswith(f"fastagi.yaml, line 2: defaults / {name} is {value}: a ")
        assert fault.endswith(f" from {low} to {high} is allowed")


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize(
    "value",
    [
        "yes",
        "true",
        "'5'",
        '"5"',
        ".nan",
        ".inf",
        "-.inf",
        "1e1",
        "0x5",
        "0o5",
        "05",
        "1_0",
        "0:05",
        "+5",
        "five",
    ]
    + ["٥", "[5]", "{a: 5}", "", "~", "|\n    5", "9" * 5000, "9" * 400 + ".0", "5 s"],
)
def test_only_plain_numbers_are_numbers(faults: Faults, name: str, value: str) -> None:
    [fault] = faults(f"defaults:\n  {name}: {value}\n")
    assert fault.startswith(f"fastagi.yaml, line 2: defaults / {name} is ")
    assert len(fault) < 250


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_are_whole(faults: Faults, name: str) -> None:
    assert len(faults(f"defaults: {{{name}: 5.0}}")) == 1


def test_timers_may_be_fractions(read: Read) -> None:
    settings = read("defaults: {cc_offer_timer: 2.5, cc_guard_timer: .25, poll_interval: 1.}").directory
    found = settings.extension(Number("1")).settings
    assert (found.cc_offer_timer, found.cc_guard_timer, found.poll_interval) == (2.5, 0.25, 1.0)


@pytest.mark.parametrize("name", CHOICES)
def test_choices(read: Read, faults: Faults, name: str) -> None:
    *first, last = CHOICES[name]
    for value in (*first, last, f'"{last}"'):
        assert chosen(read(f"defaults: {{{name}: {value}}}"), name) == value.strip('"')
        text = entry("1000", name, value)
        assert chosen(read(text), name) == value.strip('"'), "an entry may have it too"
    capital = last.lower() if last.isupper() else last.capitalize()
    for value in (capital, "native", "no", "", "0", f"[{last}]", f'" {last}"', f'"{last}\\n"', "~"):
        [fault] = faults(f"defaults: {{{name}: {value}}}")
        assert fault.startswith(f"fastagi.yaml, line 1: defaults / {name} is ")
        assert fault.endswith(f": {', '.join(first)} or {last} is allowed")


@pytest.mark.parametrize("value", ["off", '"off"', *"0123456789", '"5"', '"*"', "'#'"])
def test_offer_digits(read: Read, value: str) -> None:
    found = read(f"defaults: {{cc_offer_digit: {value}}}")
    assert chosen(found, "cc_offer_digit") == value.strip("\"'")


@pytest.mark.parametrize(
    "value",
    ["10", "05", "-1", "A", "Off", "no", "false", "", "~", '""', '" 5"', '"5\\n"', "٥", "[5]", '"**"'],
)
def test_offer_digits_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(f"defaults: {{cc_offer_digit: {value}}}")
    assert fault.startswith("fastagi.yaml, line 1: defaults / cc_offer_digit is ")
    assert fault.endswith(": off, or one of 0-9 * #, is allowed")


@pytest.mark.parametrize("value", ["''", "CC", "'CC '", "Rückruf: ", "x" * 80])
def test_recall_prefixes(read: Read, value: str) -> None:
    found = chosen(read(f'defaults: {{cc_recall_prefix: "{value}"}}'), "cc_recall_prefix")
    assert found == value


@pytest.mark.parametrize(
    "value",
    ["x" * 81, "a\\nb", "a\\rb", "a\\tb", "a\\0b", "a\\u2028b", "a\\x85b", '\\"', "<1>", "a\\\\b"],
)
def test_recall_prefixes_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(f'defaults: {{cc_recall_prefix: "{value}"}}')
    assert fault.startswith("fastagi.yaml, line 1: defaults / cc_recall_prefix is ")
    assert fault.endswith(': a text of at most 80 printable characters without ", <, > and \\ is allowed')


@pytest.mark.parametrize(
    "value",
    [
        "",
        "<http://www.notused.com>;info=alert-internal;x-line-id=0",
        "<urn:alert:source:internal>",
        "Bellcore-dr3",
        "info=alert-autoanswer",
        "x" * 200,
    ],
)
def test_alert_infos(read: Read, value: str) -> None:
    found = read(f'defaults: {{cc_recall_alert_info: "{value}"}}')
    assert chosen(found, "cc_recall_alert_info") == value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 201,
        "a\\r\\nTo: b",
        "a\\nb",
        "a\\rb",
        "a\\tb",
        "a\\0b",
        "a\\x7fb",
        "a,b",
        "${SHELL(x)}",
        "$[1]",
        "a$b",
        "a(b",
        "a)b",
        "a'b",
        '\\"a\\"',
        "`a`",
        "a\\\\b",
        "é",
        "a\\u2028b",
    ],
)
def test_alert_infos_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(f'defaults: {{cc_recall_alert_info: "{value}"}}')
    assert fault.startswith("fastagi.yaml, line 1: defaults / cc_recall_alert_info is ")
    assert fault.endswith(
        ": a text of at most 200 printable ASCII characters without , $ \" ' ` \\ ( and ), is allowed"
    )


@pytest.mark.parametrize(
    "value", ["2000@from-internal", "*30@a.b_c-d", "+49#@" + "x" * 79, "0" * 40 + "@ext-local"]
)
def test_hints(read: Read, value: str) -> None:
    found = read(entry("2000", "hint", f'"{value}"')).directory.extension(Number("2000"))
    assert found.hint == value


@pytest.mark.parametrize(
    "value",
    ["", "2000", "@phones", "2000@", "2000@a@b", "Hint:2000@phones", "2000@a b", "2000@a,b", "2000@${X}"]
    + [
        "x@phones",
        "2000@a\\n",
        "2000@phones)",
        "2" * 41 + "@phones",
        "2000@" + "x" * 80,
        "2000@é",
        "٢@phones",
    ],
)
def test_hints_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(entry("2000", "hint", f'"{value}"'))
    assert fault.startswith('fastagi.yaml, line 3: extensions / "2000" / hint is ')
    assert fault.endswith(": <number>@<context>, as 2000@from-internal, is allowed")


def test_a_hint_is_that_of_one_entry(faults: Faults) -> None:
    [fault] = faults("defaults: {hint: 2000@phones}")
    assert fault.startswith(
        "fastagi.yaml, line 1: defaults / hint is not a key here (it belongs in extensions): "
    )


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_limits_are_not_for_one_extension(faults: Faults, name: str) -> None:
    [fault] = faults(entry("1000", name, "5"))
    start = f'fastagi.yaml, line 3: extensions / "1000" / {name} is not a key here (it belongs in defaults): '
    assert fault.startswith(start)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Reception", "Reception"),
        ("Zoë O’Hara, 2nd floor", "Zoë O’Hara, 2nd floor"),
        ("O'Hara", "O'Hara"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("No", "No"),
        ("''", ""),
        ("x" * 80, "x" * 80),
    ],
)
def test_names_are_their_own_text(read: Read, value: str, name: str) -> None:
    assert read(entry("1000", "name", value)).directory.extension(Number("1000")).name == name


@pytest.mark.parametrize(
    "value",
    [
        "x" * 81,
        "'say \"a\"'",
        "a<b",
        "a>b",
        "a\\b",
        '"a\\tb"',
        '"a\\0b"',
        '"a\\x7fb"',
        '"a\\rb"',
        '"\\u202eb"',
        "",
        "[a]",
    ],
)
def test_names_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(entry("1000", "name", value))
    assert fault.startswith('fastagi.yaml, line 3: extensions / "1000" / name is ')


@pytest.mark.parametrize(
    "value",
    [
        "PJSIP/1000",
        "PJSIP/1000&PJSIP/desk-2",
        "PJSIP/1000/sip:1000@192.0.2.1:5060",
        "PJSIP/x@trunk&Local/1000@phones/n",
        "PJSIP/t/sip:1@[2001:db8::1]",
        "PJSIP/" + "x" * 394,
    ],
)
def test_dial_strings(read: Read, value: str) -> None:
    assert (
        read(entry("1000", "dialstring", f'"{value}"')).directory.extension(Number("1000")).dialstring
        == value
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1000",
        "PJSIP",
        "PJSIP/",
        "/1000",
        "&PJSIP/1",
        "PJSIP/1&",
        "PJSIP/1&&PJSIP/2",
        "PJSIP/1&2",
        "PJSIP/1 2",
    ]
    + [
        "PJSIP/1,30",
        "PJSIP/${X}",
        "PJSIP/1;2",
        "PJSIP/'1'",
        "PJSIP/1\\\\2",
        'PJSIP/\\"1',
        "PJSIP/1\\n",
        "PJSIP/é",
    ]
    + ["PJSIP/1\\t", "PJSIP/1\\x7f", " PJSIP/1", "P-J/1", "PJSIP/" + "x" * 395],
)
def test_dial_strings_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(entry("1000", "dialstring", f'"{value}"'))
    assert fault.startswith('fastagi.yaml, line 3: extensions / "1000" / dialstring is ')


def test_devices(read: Read) -> None:
    found = read(entry("1000", "device", "PJSIP/1000&PJSIP/soft_1.a")).directory.extension(Number("1000"))
    assert found.devices == ("PJSIP/1000", "PJSIP/soft_1.a")


@pytest.mark.parametrize(
    "value",
    [
        "''",
        "",
        "1000",
        "SIP/1",
        "PJSIP/",
        "PJSIP/1@2",
        "PJSIP/1&",
        "'PJSIP/1 '",
        '"PJSIP/1\\n"',
        "PJSIP/1&PJSIP/1",
    ]
    + ["&".join(f"PJSIP/{i}" for i in range(9)), "[PJSIP/1]"],
)
def test_devices_refuse(faults: Faults, value: str) -> None:
    [fault] = faults(entry("1000", "device", value))
    assert fault.startswith('fastagi.yaml, line 3: extensions / "1000" / device is ')


# --------------------------------------------------------------------------------------- numbers and patterns


@pytest.mark.parametrize(
    "key", ["1000", "0100", "+4930", "00", "'*30'", "'#9'", "0", "9" * 40, "?  1000\n  "]
)
def test_a_number_is_its_own_text_in_quotes_or_not(read: Read, key: str) -> None:
    directory = read(f"extensions:\n  {key}: {{name: Found}}\n").directory
    assert directory.extension(Number(key.strip("'? \n"))).name == "Found"


def test_0100_is_neither_64_nor_100(read: Read) -> None:
    directory = read("extensions: {0100: {name: Found}}").directory
    assert [directory.extension(Number(number)).name for number in ("64", "100")] == ["", ""]


@pytest.mark.parametrize(
    "key", ["''", "1_000", "1.5", "0x10", "1e3", "12a", "'1000 '", "-5", "9" * 41, "~", "true", "٥"]
)
def test_a_number_refuses(faults: Faults, key: str) -> None:
    [fault] = faults(f"extensions:\n  {key}: {{}}\n")
    assert (
        fault.startswith("fastagi.yaml, line 2: extensions / ")
        and "is neither a number nor a pattern: " in fault
    )


@pytest.mark.parametrize(
    "end", [".X", "!X", "..", ".!", "[]", "[1", "1]", "[5-1]", "[1-]", "[-1]", "[X]", "[1X]"]
)
@pytest.mark.parametrize("start", ["_", "_1"])
def test_a_pattern_refuses(faults: Faults, start: str, end: str) -> None:
    [fault] = faults(f"extensions:\n  '{start}{end}': {{}}\n")
    assert f'extensions / "{start}{end}" is neither a number nor a pattern: ' in fault


@pytest.mark.parametrize(
    "key", ["_", "__", "_A", "_2 X", "_2-X", "_2/1", "_[a-c]", "_[1.]", "_[*-9]", "_é", "_" + "X" * 41]
)
def test_a_pattern_refuses_other_characters(faults: Faults, key: str) -> None:
    assert "is neither a number nor a pattern: " in faults(f"extensions:\n  '{key}': {{}}\n")[0]


def test_a_pattern_of_40_characters(read: Read) -> None:
    directory = read(f"extensions: {{_{'X' * 40}: {{name: Found}}}}").directory
    assert directory.extension(Number("1" * 40)).name == "Found"
    assert directory.extension(Number("1" * 39)).name == ""


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("_2XXX", "2000 2999", "200 20000 3000 2*00 200+"),
        ("_2xxx", "2000 2999", "200 20000 3000"),
        ("_Z", "1 9", "0 * # +"),
        ("_z", "1 9", "0"),
        ("_N", "2 9", "0 1"),
        ("_n", "2 9", "0 1"),
        ("_2.", "20 2* 2000", "2 30"),
        ("_2!", "2 20 2*#", "3 32"),
        ("_.", "1 * +49", ""),
        ("_!", "1 * +49", ""),
        ("_[135-7]0", "10 30 50 60 70", "20 40 80 *0 -0"),
        ("_[*#]X", "*1 #9", "11 **"),
        ("_+49.", "+491", "+49 491 49491"),
        ("_*3X", "*30", "30 130 1130 **30"),
    ],
)
def test_what_a_pattern_matches(read: Read, pattern: str, matching: str, other: str) -> None:
    directory = read(f"extensions: {{'{pattern}': {{name: Found}}}}").directory
    assert {number: directory.extension(Number(number)).name for number in matching.split()} == dict.fromkeys(
        matching.split(), "Found"
    )
    assert {directory.extension(Number(number)).name for number in other.split()} <= {""}
    assert directory.extension(Number(matching.split()[0])).number == matching.split()[0]


# As "dialplan show" of Asterisk 22 lists them.
LISTED = (
    "_# _*X _+49! _+X. _25X _2[0-4]XX _2[1-35-9]XX _2X5 _2XXX. _2XXX! _2XXX _2XX. _2XX! _[2]XX _2X _2. _2!"
    " _[*#]X. _[12]X _[13]X _[15]. _[24]X _[1-4]XXX _[1-33-4]X _[1-5]X _N[0-4]X _[2-9]X5 _N. _N _Z[0-4]X _Z"
    " _X25 _XXXX _[0-9]XX. _XXX _XX _X _[0-9*]5 _[0-9*]X _. _!"
)
ORDER = LISTED.split()

# Which of them Asterisk 22 takes for a number: the first line of "dialplan show 2550@context".
WINNERS = {
    "0": "_X",
    "1": "_Z",
    "2": "_2!",
    "5": "_N",
    "25": "_2X",
    "15": "_[12]X",
    "35": "_[13]X",
    "55": "_[15].",
    "95": "_N.",
    "255": "_25X",
    "2500": "_2[1-35-9]XX",
    "2400": "_2[0-4]XX",
    "1234": "_[15].",
    "0500": "_XXXX",
    "9999": "_N.",
    "25000": "_2XXX.",
    "*3": "_*X",
    "*35": "_[*#]X.",
    "#": "_#",
    "#7": "_.",
    "+3": "_.",
    "+49": "_+49!",
    "+4930": "_+49!",
}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_patterns_is_asterisks_own(read: Read, seed: int) -> None:
    shuffled = random.Random(seed).sample(ORDER, len(ORDER))
    assert sorted(shuffled, key=lambda text: Pattern(text).rank) == ORDER
    directory = read(
        "extensions:\n" + "".join(f"  '{key}': {{name: '{key}'}}\n" for key in shuffled)
    ).directory
    assert {number: directory.extension(Number(number)).name for number in WINNERS} == WINNERS


@pytest.mark.parametrize(
    ("first", "second", "number"),
    [
        ("_2!", "_2", "2"),  # the end of a pattern ranks last in pbx.c
        ("_2X!", "_2X", "25"),
        ("_25.", "_2XX", "255"),  # the earlier position decides
        ("_2XX", "_2.", "255"),
        ("_X.", "_X!", "12"),
        ("_.", "_!", "1"),
        ("_N", "_Z", "5"),
        ("_Z", "_X", "5"),
        ("_[1-3]", "_[1-4]", "2"),
        ("_[13]", "_[23]", "3"),  # as many: the lowest first character
        ("_[125]", "_[135]", "5"),  # then the first that differs
        ("_2", "_[23]", "2"),
        ("_[1-8]", "_Z", "5"),
    ],
)
def test_the_more_specific_pattern_wins_wherever_it_stands(
    read: Read, first: str, second: str, number: str
) -> None:
    for keys in ((first, second), (second, first)):
        directory = read(
            "extensions:\n" + "".join(f"  '{key}': {{name: '{key}'}}\n" for key in keys)
        ).directory
        assert directory.extension(Number(number)).name == first


@pytest.mark.parametrize(
    ("one", "same"), [("_2XX", "_2xX"), ("_X", "_[0-9]"), ("_[2]", "_2"), ("_[1-31]", "_[321]")]
)
def test_a_pattern_in_other_letters_is_the_same(faults: Faults, one: str, same: str) -> None:
    [fault] = faults(f"extensions:\n  '{one}': {{}}\n  '{same}': {{}}\n")
    assert fault.startswith(
        f'fastagi.yaml, line 3: extensions / "{same}" is the same pattern as "{one}" in line 2: '
    )


# --------------------------------------------------------------------------------------------- who gets what

WHO = """\
defaults: {cc_offer_timer: 30, cc_max_agents: 7}
extensions:
  _2XXX: {cc_offer_timer: 40, name: Sales}
  _25XX: {cc_max_agents: 9}
  2500: {cc_recall_timer: 50}
"""


@pytest.mark.parametrize(
    ("number", "settings", "name"),
    [
        ("1000", Settings(cc_offer_timer=30, cc_max_agents=7), ""),
        ("2000", Settings(cc_offer_timer=40, cc_max_agents=7), "Sales"),
        ("2501", Settings(cc_offer_timer=30, cc_max_agents=9), ""),
        ("2500", Settings(cc_offer_timer=30, cc_max_agents=7, cc_recall_timer=50), ""),
    ],
)
def test_built_in_then_defaults_then_the_most_specific_entry_alone(
    read: Read, number: str, settings: Settings, name: str
) -> None:
    directory = read(WHO).directory
    for _ in range(2):  # the second time from the cache
        assert directory.extension(Number(number)) == Extension(Number(number), settings, name)


def test_every_setting_reaches_its_extension_by_its_own_name(read: Read) -> None:
    values = {name: low + 2 + place for place, (name, (low, _)) in enumerate(BOUNDS.items())}
    words = {name: known[-1] for name, known in CHOICES.items()}
    words |= {name: STATES[place % 9] for place, name in enumerate(CHOICES) if CHOICES[name] is STATES}
    settings = {name: value for name, value in values.items() if name not in LIMITS} | words | TEXTS
    assert all(value != getattr(Settings(), name) for name, value in settings.items())
    text = "".join(f"    {name}: {value!r}\n" for name, value in settings.items())
    found = read(f"extensions:\n  1000:\n{text}").directory.extension(Number("1000"))
    assert asdict(found.settings) == settings
    limits = {name: value for name, value in values.items() if name in LIMITS}
    text = "".join(f"  {name}: {value}\n" for name, value in limits.items())
    assert asdict(read(f"defaults:\n{text}").limits) == limits


def test_anchors_aliases_and_merges(read: Read) -> None:
    directory = read("""\
extensions:
  1000: &desk {cc_offer_timer: 60, cc_max_agents: 2}
  1001: *desk
  1002: &two {<<: *desk, cc_offer_timer: 61, name: Two}
  1003: {name: Three, <<: [*two, {cc_max_agents: 3, cc_retry_timer: 5}]}
""").directory
    found = [directory.extension(Number(str(number))) for number in range(1000, 1004)]
    assert [extension.name for extension in found] == ["", "", "Two", "Three"]
    assert [extension.settings for extension in found] == [
        Settings(cc_offer_timer=60, cc_max_agents=2),
        Settings(cc_offer_timer=60, cc_max_agents=2),
        Settings(cc_offer_timer=61, cc_max_agents=2),
        Settings(cc_offer_timer=61, cc_max_agents=2, cc_retry_timer=5),
    ]


DEVICES = """\
extensions:
  1000: {device: PJSIP/alice&PJSIP/alice-mobile}
  1001: {device: PJSIP/1001&PJSIP/1009}
  1002: {name: Two}
  1003: {device: PJSIP/1002}
  _3XXX: {device: PJSIP/3000}
"""


@pytest.mark.parametrize(
    ("device", "number"),
    [
        ("PJSIP/alice", "1000"),
        ("PJSIP/alice-mobile", "1000"),
        ("PJSIP/1000", None),  # 1000 has other devices: whoever this is, he is not 1000
        ("PJSIP/1001", "1001"),
        ("PJSIP/1009", "1001"),
        ("PJSIP/1002", "1003"),  # an entry that names it beats its number
        ("PJSIP/1003", None),
        ("PJSIP/2000", "2000"),  # no entry at all
        ("PJSIP/+4930", "+4930"),
        ("PJSIP/3000", "3000"),
        ("PJSIP/3001", None),  # its pattern names another device
        ("PJSIP/bob", None),
        ("PJSIP/anonymous", None),
        ("PJSIP/1000a", None),
        ("PJSIP/" + "1" * 41, None),
    ],
)
def test_who_speaks_from_a_device(read: Read, device: str, number: str | None) -> None:
    found = read(DEVICES).directory.of_device(Device(device))
    assert (found and found.number) == number


def test_a_device_that_only_a_pattern_names_is_nobody(read: Read) -> None:
    assert read("extensions: {_3XXX: {device: PJSIP/desk}}").directory.of_device(Device("PJSIP/desk")) is None


def test_patterns_may_share_a_device_with_a_number(read: Read) -> None:
    found = read(
        "extensions:\n  1000: {device: PJSIP/a}\n  _2X: {device: PJSIP/a}\n  _3X: {device: PJSIP/a}\n"
    )
    assert found.directory.of_device(Device("PJSIP/a")) == found.directory.extension(Number("1000"))


def test_a_number_is_matched_once_and_the_memory_of_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastagi.directory.CACHED_NUMBERS", 3)
    directory = Directory(Settings(), {"_XXX": Extension(Number("_XXX"), Settings(), "Found")})
    first = directory.extension(Number("100"))
    assert directory.extension(Number("100")) is first
    for number in range(101, 104):
        assert directory.extension(Number(str(number))).number == str(number)
    again = directory.extension(Number("100"))
    assert again == first and again is not first


# ---------------------------------------------------------------------------------------------------- trunks

OURS = Address("192.0.2.1", 5070)
THEIRS = Address("192.0.2.10", 5060)
LEAST = {"listen": "udp:192.0.2.1:5070", "peer": '["192.0.2.10:5060"]'}


def trunk(name: str = "mxone", **keys: str) -> str:
    """One entry of ``trunks:``, each key in a line of its own."""
    lines = [f"    {key}: {value}\n" for key, value in (LEAST | keys).items()]
    return f"  {name}:\n" + "".join(lines)


def trunks(*entries: str) -> str:
    return "trunks:\n" + "".join(entries)


def test_the_least_that_a_trunk_must_say(read: Read) -> None:
    [found] = read(trunks(trunk())).trunks
    assert found == Trunk(
        name="mxone",
        transport="udp",
        listen=OURS,
        peer=(THEIRS,),
        asterisk=Address(OURS.host, 5060),
        endpoint="mxone",
        towards_peer=OURS,
        towards_asterisk=OURS,
        allow=(),
        subscribe_from="caller",
        retention=True,
        call_info=True,
        recall_timer=20,
    )


def test_all_that_a_trunk_can_say(read: Read) -> None:
    keys = {
        "listen": "tcp:192.0.2.1:5071",
        "peer": '["192.0.2.10:5060", "192.0.2.11:5062"]',
        "asterisk": "127.0.0.3:5062",
        "endpoint": "to-mxone",
        "public": "198.51.100.1:5072",
        "allow": "[192.0.2.12, 203.0.113.0/24]",
        "subscribe_from": "sip:pbx@192.0.2.1",
        "in_path": "no",
        "call_info": "no",
        "retention": "no",
        "cc_recall_timer": "30.5",
    }
    assert keys.keys() == sections.Trunk.model_fields.keys()
    [found] = read(trunks(trunk(**keys))).trunks
    assert found == Trunk(
        name="mxone",
        transport="tcp",
        listen=Address("192.0.2.1", 5071),
        peer=(THEIRS, Address("192.0.2.11", 5062)),
        asterisk=Address("127.0.0.3", 5062),
        endpoint="to-mxone",
        towards_peer=Address("198.51.100.1", 5072),
        towards_asterisk=Address("192.0.2.1", 5071),
        allow=(ip_network("192.0.2.12"), ip_network("203.0.113.0/24")),
        subscribe_from="sip:pbx@192.0.2.1",
        retention=False,
        in_path=False,
        call_info=False,
        recall_timer=30.5,
    )


def test_what_is_not_said_of_a_trunk_is_as_the_trunk_itself_has_it(read: Read) -> None:
    [found] = read(trunks(trunk())).trunks
    least = Trunk("mxone", "udp", OURS, (THEIRS,), found.asterisk, "mxone", OURS, OURS)
    assert found == least


def test_trunks_keep_their_order(read: Read) -> None:
    names = ["z", "a", "m"]
    entries = [trunk(name, listen=f"udp:192.0.2.1:{5070 + i}") for i, name in enumerate(names)]
    assert [found.name for found in read(trunks(*entries)).trunks] == names


@pytest.mark.parametrize("name", ["m", "MX-one_2.a", "_", "-", "m" * 40, "'m'"])
def test_names_of_trunks(read: Read, name: str) -> None:
    assert [found.name for found in read(trunks(trunk(name))).trunks] == [name.strip("'")]


@pytest.mark.parametrize(
    "name", ["''", "m" * 41, "mx one", "mx@one", "mx/one", "mx:one", "é", "'m '", '"m\\n"', "~a"]
)
def test_names_of_trunks_refuse(faults: Faults, name: str) -> None:
    [fault] = faults(trunks(trunk(name, endpoint="mxone")))
    assert fault.startswith("fastagi.yaml, line 2: trunks / ") and " is no name of a trunk: " in fault


@pytest.mark.parametrize(
    ("listen", "transport", "host", "port"),
    [
        ("udp:192.0.2.1:5070", "udp", "192.0.2.1", 5070),
        ("tcp:192.0.2.1:1", "tcp", "192.0.2.1", 1),
        ("'udp:192.0.2.1:65535'", "udp", "192.0.2.1", 65535),
        ("udp:0.0.0.0:5070", "udp", "0.0.0.0", 5070),
    ],
)
def test_where_a_trunk_listens(read: Read, listen: str, transport: str, host: str, port: int) -> None:
    [found] = read(trunks(trunk(listen=listen))).trunks
    assert (found.transport, found.listen) == (transport, Address(host, port))
    assert found.towards_peer == found.towards_asterisk == found.listen


@pytest.mark.parametrize("listen", ["udp:[2001:DB8:0::1]:5070", "'tcp:[2001:db8::1]:5070'", "udp:[::]:5070"])
def test_where_a_trunk_listens_with_ipv6(read: Read, listen: str) -> None:
    """Asterisk is then expected at the same address, or the loopback of that family."""
    [found] = read(trunks(trunk(listen=listen, peer='["[2001:db8::10]:5060"]'))).trunks
    assert found.listen == Address("::" if "[::]" in listen else "2001:db8::1", 5070)
    assert found.asterisk == Address("::1" if "[::]" in listen else "2001:db8::1", 5060)


@pytest.mark.parametrize(
    "listen",
    [
        "udp",
        "'udp:'",
        "5070",
        "192.0.2.1:5070",
        "UDP:192.0.2.1:5070",
        "tls:192.0.2.1:5070",
        "udp/192.0.2.1:5070",
        "'udp: 192.0.2.1:5070'",
        "udp:192.0.2.1:0",
        "udp:192.0.2.1:65536",
        "udp:192.0.2.1",
        "udp:localhost:5070",
        "udp:2001:db8::1:5070",
        "udp:[192.0.2.1]:5070",
        "udp:[fe80::1%eth0]:5070",
        "udp:[::ffff:192.0.2.1]:5070",
        "udp:224.0.1.75:5060",
        "udp:[ff02::1]:5060",
        "[udp, 192.0.2.1, 5070]",
        '"udp:192.0.2.1:5070\\n"',
        "",
    ],
)
def test_where_a_trunk_cannot_listen(faults: Faults, listen: str) -> None:
    [fault] = faults(trunks(trunk(listen=listen)))
    assert fault.startswith('fastagi.yaml, line 3: trunks / "mxone" / listen is ')
    assert ": udp: or tcp:, an IP address and a port from 1 to 65535, as " in fault


@pytest.mark.parametrize(
    "address",
    ["", "5060", "192.0.2.10", "192.0.2.10:0", "mxone:5060", "0.0.0.0:5060", "'[::]:5060'", "239.0.0.1:5060"]
    + [
        "'[::ffff:192.0.2.10]:5060'",
        "udp:192.0.2.10:5060",
        "sip:192.0.2.10:5060",
        "{}",
        "'192.0.2.10:5060 '",
    ],
)
@pytest.mark.parametrize("key", ["peer", "asterisk", "public"])
def test_addresses_refuse(faults: Faults, key: str, address: str) -> None:
    value = f'["192.0.2.11:5060", {address or "~"}]' if key == "peer" else address
    [fault] = faults(trunks(trunk(**{key: value})))
    line, item = (4, " / item 2") if key == "peer" else (5, "")
    assert fault.startswith(f'fastagi.yaml, line {line}: trunks / "mxone" / {key}{item} is ')
    assert "the IP address of one machine and a port from 1 to 65535, as " in fault


def test_there_are_1_to_8_peers(read: Read, faults: Faults) -> None:
    eight = [f'"192.0.2.{host}:5060"' for host in range(10, 18)]
    [found] = read(trunks(trunk(peer=f"[{', '.join(eight)}]"))).trunks
    assert [f'"{peer}"' for peer in found.peer] == eight
    for peers in ("[]", "", f"[{', '.join([*eight, eight[0]])}]"):
        [fault] = faults(trunks(trunk(peer=peers)))
        assert fault.startswith('fastagi.yaml, line 4: trunks / "mxone" / peer is ')


@pytest.mark.parametrize("endpoint", ["a", "mx.one_2-b+c", "1000a", "_X", "e" * 80])
def test_endpoints(read: Read, endpoint: str) -> None:
    [found] = read(trunks(trunk(endpoint=endpoint))).trunks
    assert found.endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint", ["''", "", "a b", "PJSIP/a", "a&b", "a@b", "é", "e" * 81, '"a\\n"', "[a]"]
)
def test_endpoints_refuse(faults: Faults, endpoint: str) -> None:
    [fault] = faults(trunks(trunk(endpoint=endpoint)))
    assert fault.startswith('fastagi.yaml, line 5: trunks / "mxone" / endpoint is ')
    assert ": the name of a PJSIP endpoint, 1 to 80 " in fault


@pytest.mark.parametrize(
    "uri",
    ["caller", "sip:pbx@192.0.2.1", "SIP:192.0.2.1:5070", "'sip:pbx@[2001:db8::1]:5070;transport=tcp'"]
    + ["sip:+4930@a.example;user=phone", "sip:cc_1;2@a.example", "sip:a%20b@c", f"sip:{'x' * 392}@c.d"],
)
def test_who_subscribes(read: Read, uri: str) -> None:
    [found] = read(trunks(trunk(subscribe_from=uri))).trunks
    assert found.subscribe_from == uri.strip("'")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "''",
        "Caller",
        "pbx",
        "pbx@192.0.2.1",
        "sips:pbx@c",
        "tel:+4930",
        "http://c",
        "'sip:'",
        "'sip:pbx@'",
    ]
    + [
        "<sip:pbx@c>",
        "sip:pbx@c>",
        "'\"PBX\" <sip:pbx@c>'",
        "'sip:\"pbx\"@c'",
        "sip:p bx@c",
        "sip:pbx@c:65536",
    ]
    + [
        '"sip:pbx@c\\r\\nX: y"',
        '"sip:pbx@c\\0"',
        '"sip:pbx@c\\x7f"',
        '"sip:pbx@c\\t"',
        "sip:é@c",
        "sip:pbx@é",
    ]
    + ["sip:pbx@c?Subject=x", "[sip:pbx@c]", f"sip:{'x' * 393}@c.d", '"sip:pbx@c\\u202e"'],
)
def test_who_cannot_subscribe(faults: Faults, uri: str) -> None:
    [fault] = faults(trunks(trunk(subscribe_from=uri)))
    assert fault.startswith('fastagi.yaml, line 5: trunks / "mxone" / subscribe_from is ')
    assert ": caller, or a sip: URI of at most 400 " in fault and fault.isprintable()


@pytest.mark.parametrize("key", ["call_info", "retention"])
def test_yes_and_no(read: Read, faults: Faults, key: str) -> None:
    for value, meant in (("yes", True), ("true", True), ("no", False), ("false", False)):
        [found] = read(trunks(trunk(**{key: value}))).trunks
        assert getattr(found, key) is meant
    for value in ("", "1", "0", "on", "Yes", "never", "[yes]", "''"):
        [fault] = faults(trunks(trunk(**{key: value})))
        assert fault.startswith(f'fastagi.yaml, line 5: trunks / "mxone" / {key} is ')
        assert fault.endswith(": yes or no is allowed")


def test_the_recall_timer_of_a_trunk(read: Read, faults: Faults) -> None:
    for value in ("10", "10.5", "60"):
        assert read(trunks(trunk(cc_recall_timer=value))).trunks[0].recall_timer == float(value)
    for value in ("9.99", "60.01", "0", "-20", "soon", "'20'", "", ".inf", "020"):
        [fault] = faults(trunks(trunk(cc_recall_timer=value)))
        assert fault.startswith('fastagi.yaml, line 5: trunks / "mxone" / cc_recall_timer is ')
        assert fault.endswith(": a number of seconds from 10 to 60 is allowed")


@pytest.mark.parametrize(
    ("first", "second", "free"),
    [
        ("udp:192.0.2.1:5070", "udp:192.0.2.1:5070", False),
        ("udp:192.0.2.1:5070", "udp:192.0.2.1:5071", True),
        ("udp:192.0.2.1:5070", "tcp:192.0.2.1:5070", True),
        ("udp:192.0.2.1:5070", "udp:192.0.2.2:5070", True),
        ("udp:192.0.2.1:5070", "udp:0.0.0.0:5070", False),
        ("udp:0.0.0.0:5070", "udp:192.0.2.1:5070", False),
        ("udp:0.0.0.0:5070", "udp:0.0.0.0:5070", False),
        ("udp:0.0.0.0:5070", "udp:0.0.0.0:5071", True),
        ("udp:0.0.0.0:5070", "tcp:0.0.0.0:5070", True),
        ("udp:0.0.0.0:5070", "udp:[::]:5070", False),
        ("udp:[::]:5070", "udp:0.0.0.0:5070", False),
        ("udp:[::]:5070", "udp:192.0.2.1:5070", False),
        ("udp:[2001:db8::1]:5070", "udp:0.0.0.0:5070", True),
        ("udp:0.0.0.0:5070", "udp:[2001:db8::1]:5070", True),
        ("udp:[2001:db8::1]:5070", "udp:[2001:DB8::0:1]:5070", False),
        ("udp:[::]:5070", "udp:[2001:db8::1]:5070", False),
    ],
)
def test_two_trunks_listen_at_two_places(
    read: Read, faults: Faults, first: str, second: str, free: bool
) -> None:
    def one(name: str, listen: str) -> str:
        peer = "[2001:db8::10]:5060" if "[" in listen else "192.0.2.10:5060"
        return trunk(name, listen=listen, peer=f'["{peer}"]')

    text = trunks(one("a", first), one("b", second))
    if free:
        assert len(read(text).trunks) == 2
    else:
        [fault] = faults(text)
        assert fault.startswith('fastagi.yaml, line 6: trunks / "b" / listen is ')
        assert fault.endswith(', which "a" in line 3 takes: another address or port is allowed')


@pytest.mark.parametrize(
    "server", ["", "fastagi: {listen: 0.0.0.0:5070}\n", "fastagi: {listen: '[::]:5070'}\n"]
)
def test_a_trunk_does_not_listen_where_the_server_does(read: Read, faults: Faults, server: str) -> None:
    port = 5070 if server else 4573
    text = server + trunks(trunk(listen=f"tcp:127.0.0.1:{port}", asterisk="127.0.0.2:5060"))
    [fault] = faults(text)
    assert ", which fastagi / listen takes: another address or port is allowed" in fault
    assert len(read(text.replace("tcp:", "udp:")).trunks) == 1


def test_two_trunks_may_have_one_peer(read: Read) -> None:
    found = read(trunks(trunk("a"), trunk("b", listen="udp:192.0.2.1:5071"))).trunks
    assert found[0].peer == found[1].peer


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (trunk("a", endpoint="pbx"), trunk("b", listen="udp:192.0.2.1:5071", endpoint="pbx"), 9),
        (trunk("a", endpoint="b"), trunk("b", listen="udp:192.0.2.1:5071"), 6),
        (trunk("a"), trunk("b", listen="udp:192.0.2.1:5071", endpoint="a"), 8),
    ],
)
def test_each_trunk_has_its_own_endpoint(faults: Faults, first: str, second: str, line: int) -> None:
    [fault] = faults(trunks(first, second))
    assert fault.startswith(f'fastagi.yaml, line {line}: trunks / "b" / endpoint is ')
    assert ', as that of "a" in line ' in fault


@pytest.mark.parametrize("key", ["1000", "_2XXX"])
@pytest.mark.parametrize("endpoint", [{}, {"endpoint": "mxone"}])
def test_an_endpoint_is_a_phones_or_a_trunks(faults: Faults, key: str, endpoint: dict[str, str]) -> None:
    text = trunks(trunk(**endpoint)) + f"extensions:\n  '{key}': {{device: PJSIP/desk&PJSIP/mxone}}\n"
    [fault] = faults(text)
    of = f'the device of extensions / "{key}" in line {6 + len(endpoint)}'
    assert f"trunks / \"mxone\" / endpoint is 'mxone', {of}: " in fault


@pytest.mark.parametrize("number", ["1000", "+49301234", "0", "9" * 40])
def test_a_number_is_no_endpoint_of_a_trunk(faults: Faults, number: str) -> None:
    """`Directory.of_device` takes whoever calls from PJSIP/1000 for 1000."""
    [fault] = faults(trunks(trunk(endpoint=number)))
    assert "which means the phone of that number: a name with letters is allowed" in fault


def test_a_trunk_called_as_a_number_needs_an_endpoint(read: Read, faults: Faults) -> None:
    assert faults(trunks(trunk("1000")))[0].startswith(
        'fastagi.yaml, line 2: trunks / "1000" / endpoint is 1000'
    )
    assert read(trunks(trunk("1000", endpoint="pbx"))).trunks[0].name == "1000"


@pytest.mark.parametrize(
    ("keys", "where", "which"),
    [
        ({"asterisk": "192.0.2.1:5070"}, "asterisk", "listen"),
        ({"peer": '["192.0.2.1:5070"]'}, "peer / item 1", "listen"),
        ({"public": "192.0.2.10:5060"}, "peer / item 1", "public"),
        ({"asterisk": "192.0.2.2:5060", "public": "192.0.2.2:5060"}, "asterisk", "public"),
        ({"listen": "udp:0.0.0.0:5060"}, "asterisk", "listen"),
        ({"listen": "udp:0.0.0.0:5070", "peer": '["127.0.0.9:5070"]'}, "peer / item 1", "listen"),
    ],
)
def test_what_is_ours_is_nobody_elses(faults: Faults, keys: dict[str, str], where: str, which: str) -> None:
    [fault] = faults(trunks(trunk(**keys)))
    assert f'trunks / "mxone" / {where} is ' in fault
    assert fault.endswith(f", which is our own ({which}): another address or port is allowed")


@pytest.mark.parametrize(
    "keys",
    [
        {"asterisk": "192.0.2.1:5060"},
        {"peer": '["192.0.2.1:5060"]', "asterisk": "127.0.0.1:5060"},
        {"public": "192.0.2.1:5070"},
        {"public": "192.0.2.1:5060", "asterisk": "127.0.0.1:5060"},
        {"listen": "udp:0.0.0.0:5060", "asterisk": "192.0.2.2:5060"},
        {"asterisk": "192.0.2.10:5061"},
        {"allow": "[127.0.0.0/8]"},
        {"allow": "[192.0.2.0/24, '2001:db8::/32']"},
        {"allow": "[]"},
        {"listen": "tcp:192.0.2.1:5070", "asterisk": "192.0.2.1:5060"},
        {"listen": "tcp:192.0.2.1:5070", "allow": "[192.0.2.0/24]", "asterisk": "127.0.0.1:5060"},
        {"peer": '["192.0.2.10:5060", "192.0.2.10:5060"]'},
    ],
)
def test_addresses_that_can_be_told_apart(read: Read, keys: dict[str, str]) -> None:
    [found] = read(trunks(trunk(**keys))).trunks
    assert found.side(found.asterisk) is Side.ASTERISK
    assert {found.side(peer) for peer in found.peer} == {Side.PEER}
    assert found.transport == "tcp" or found.side(found.listen) is None


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"asterisk": "192.0.2.10:5060"}, "a peer's address too"),
        ({"peer": '["192.0.2.10:5060", "192.0.2.1:5060"]'}, "a peer's address too"),
        ({"listen": "tcp:192.0.2.1:5070", "asterisk": "192.0.2.10:5060"}, "a peer's address too"),
        (
            {"listen": "tcp:192.0.2.1:5070", "asterisk": "192.0.2.10:5061"},
            "and a peer has that IP address too",
        ),
        ({"listen": "tcp:192.0.2.1:5070", "allow": "[192.0.2.1]"}, "and allow has that IP address too"),
        (
            {"listen": "tcp:192.0.2.1:5070", "allow": "[192.0.2.0/24, 0.0.0.0/0]"},
            "and allow has that IP address too",
        ),
    ],
)
def test_asterisk_and_the_peer_are_two(faults: Faults, keys: dict[str, str], why: str) -> None:
    [fault] = faults(trunks(trunk(**keys)))
    assert 'trunks / "mxone" / asterisk is ' in fault and f"', {why}: " in fault


@pytest.mark.parametrize(
    ("key", "value"),
    [("asterisk", "'[::1]:5060'"), ("peer", '["[2001:db8::10]:5060"]'), ("public", "'[2001:db8::1]:5070'")],
)
def test_addresses_are_of_one_family(faults: Faults, key: str, value: str) -> None:
    [fault] = faults(trunks(trunk(**{key: value})))
    assert fault.endswith(", but listen is of IPv4: an IPv4 address is allowed")
    ipv6 = {"listen": "udp:[2001:db8::1]:5070", "peer": "[]"}
    found = faults(
        trunks(trunk(**{**ipv6, key: '["192.0.2.10:5060"]' if key == "peer" else "192.0.2.3:5060"}))
    )
    assert sum(fault.endswith(", but listen is of IPv6: an IPv6 address is allowed") for fault in found) == 1


def test_a_wrong_key_of_a_trunk_does_not_hide_the_others(faults: Faults) -> None:
    text = trunks(
        trunk("a", asterisk="here", public="192.0.2.10:5060", cc_recall_timer="0"),
        trunk("b", peer='["192.0.2.1:5070", there]', endpoint="a"),
        trunk("c", listen="everywhere", asterisk="192.0.2.10:5060"),
    )
    assert [fault.removeprefix("fastagi.yaml, line ").split(" is ")[0] for fault in faults(text)] == [
        '4: trunks / "a" / peer / item 1',
        '5: trunks / "a" / asterisk',
        '7: trunks / "a" / cc_recall_timer',
        '9: trunks / "b" / listen',
        '10: trunks / "b" / peer / item 1',
        '10: trunks / "b" / peer / item 2',
        '11: trunks / "b" / endpoint',
        '13: trunks / "c" / listen',
        '15: trunks / "c" / asterisk',
    ]


@pytest.mark.parametrize("entry", ["", "[]", "{}", "5", "{peer: {}}", "{listen: {}, allow: 5, asterisk: []}"])
def test_a_trunk_of_whatever_shape_is_told_in_sentences(faults: Faults, entry: str) -> None:
    assert all('trunks / "mxone"' in fault for fault in faults(f"trunks:\n  mxone: {entry}\n"))


def test_many_trunks_are_soon_read(read: Read) -> None:
    entries = [
        trunk(
            f"t{place}",
            listen=f"udp:192.0.{place // 250}.{place % 250 + 1}:5070",
            peer='["203.0.113.1:5060"]',
        )
        for place in range(3000)
    ]
    began = time.perf_counter()
    assert len(read(trunks(*entries)).trunks) == 3000
    assert time.perf_counter() - began < 20


def test_a_trunk_that_listens_everywhere_gets_real_addresses(read: Read) -> None:
    """Towards either side the one from which the system sends there."""
    own = {"192.0.2.10": "192.0.2.7", "127.0.0.1": "127.0.0.1"}
    [found] = read(trunks(trunk(listen="udp:0.0.0.0:5070"))).trunks
    real = resolved(found, lambda to: own[to.host])
    assert real == replace(
        found, towards_peer=Address("192.0.2.7", 5070), towards_asterisk=Address("127.0.0.1", 5070)
    )
    [found] = read(trunks(trunk(listen="udp:0.0.0.0:5070", public="198.51.100.1:5060"))).trunks
    real = resolved(found, lambda to: own[to.host])
    assert real.towards_peer == Address("198.51.100.1", 5060)
    assert real.towards_asterisk == Address("127.0.0.1", 5070)
    assert real.listen == Address("0.0.0.0", 5070)


def test_a_trunk_that_listens_at_one_address_asks_for_none(read: Read) -> None:
    def own_address(to: Address) -> str:
        raise AssertionError(to)

    for keys in ({}, {"public": "198.51.100.1:5060"}):
        [found] = read(trunks(trunk(**keys))).trunks
        assert resolved(found, own_address) == found


# ----------------------------------------------------------------------------------- what check tells of them


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., dict[str, tuple[str, str]]]:
    def told(*entries: str) -> dict[str, tuple[str, str]]:
        path = tmp_path / "fastagi.yaml"
        path.write_text(f"store: {tmp_path}/fastagi.db\n" + trunks(*entries))
        found = {finding.check: (str(finding.result), finding.sentence) for finding in check.findings(path)}
        return {of: finding for of, finding in found.items() if of.startswith("trunk ")}

    return told


def bound(kind: socket.SocketKind, host: str = "127.0.0.1") -> socket.socket:
    """A socket that has taken a port of this host."""
    other = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    other.bind((host, 0))
    if kind == socket.SOCK_STREAM:
        other.listen()
    return other


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_check_tells_whether_a_trunk_can_listen(
    told: Callable[..., dict[str, tuple[str, str]]], transport: str
) -> None:
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    with bound(kind) as other:
        where = f"{transport}:127.0.0.1:{other.getsockname()[1]}"
        entry = trunk(listen=where, asterisk="127.0.0.2:5060")
        found = told(entry)
    assert found == {"trunk mxone": ("fault", f"nobody can listen on {where}: Address already in use")}
    assert told(entry) == {"trunk mxone": ("ok", f"{where} is free")}


def test_check_tells_it_of_each_trunk(told: Callable[..., dict[str, tuple[str, str]]]) -> None:
    with bound(socket.SOCK_DGRAM) as one, bound(socket.SOCK_STREAM) as two:
        ports = one.getsockname()[1], two.getsockname()[1]
    found = told(
        trunk("a", listen=f"udp:127.0.0.1:{ports[0]}"),
        trunk("b", listen=f"tcp:0.0.0.0:{ports[1]}"),
        trunk("c", listen="udp:203.0.113.77:5070"),
    )
    assert found == {
        "trunk a": ("ok", f"udp:127.0.0.1:{ports[0]} is free"),
        "trunk b": ("ok", f"tcp:0.0.0.0:{ports[1]} is free"),
        "trunk c": ("fault", "nobody can listen on udp:203.0.113.77:5070: Cannot assign requested address"),
    }


def test_check_tells_it_with_ipv6(told: Callable[..., dict[str, tuple[str, str]]]) -> None:
    with bound(socket.SOCK_DGRAM, "::1") as other:
        where = f"udp:[::1]:{other.getsockname()[1]}"
        entry = trunk(listen=where, peer='["[2001:db8::10]:5060"]')
        found = told(entry)
    assert found == {"trunk mxone": ("fault", f"nobody can listen on {where}: Address already in use")}
    assert told(entry) == {"trunk mxone": ("ok", f"{where} is free")}


def test_check_does_not_try_it_beside_a_running_server(
    told: Callable[..., dict[str, tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = control.Answer(True, "", "fastagi 1.0 is running")
    monkeypatch.setattr(control, "ping", lambda path: answer)
    found = told(trunk(listen="udp:203.0.113.77:5070"))
    sentence = "udp:203.0.113.77:5070 was not tried: fastagi 1.0 is running"
    assert found == {"trunk mxone": ("note", sentence)}


def test_check_tells_nothing_of_trunks_where_there_are_none(tmp_path: Path) -> None:
    path = tmp_path / "fastagi.yaml"
    path.write_text(f"store: {tmp_path}/fastagi.db\n")
    assert not [finding for finding in check.findings(path) if finding.check.startswith("trunk")]
