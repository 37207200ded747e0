"""The AGI wire layer: what Asterisk 22 sent, and what somebody else may send in its name."""

import signal
import subprocess
import sys

import pytest
from asterisk.agi import (
    AGIAppError,
    AGIException,
    AGIHangup,
    AGIInvalidCommand,
    AGIResultHangup,
    AGIUnknownError,
    AGIUsageError,
)

from fastagi.agi.wire import HANGUP, Call, Environment, Replies, Reply, WireError, command, error_of
from fastagi.errors import FastagiError

# Recorded: AGI(agi://127.0.0.1:4573/record?x=1,${DIALSTATUS},${HANGUPCAUSE},${DIALEDPEERNAME})
ASTERISK_22 = b"""\
agi_network: yes
agi_network_script: record?x=1
agi_request: agi://127.0.0.1:4573/record?x=1
agi_channel: PJSIP/1000-00000002
agi_language: en
agi_type: PJSIP
agi_uniqueid: lab-1795290951.2
agi_version: 22.10.1+dfsg+~cs6.17.60671434-1
agi_callerid: 1000
agi_calleridname: Alice
agi_callingpres: 0
agi_callingani2: 0
agi_callington: 0
agi_callingtns: 0
agi_dnid: 2000
agi_rdnis: unknown
agi_context: phones
agi_extension: 2000
agi_priority: 4
agi_enhanced: 0.0
agi_accountcode: \n\
agi_threadid: 140474983909056
agi_arg_1: BUSY
agi_arg_2: 17
agi_arg_3: \n\

"""


def read(block: bytes) -> Call | None:
    return Environment().feed(iter(block.split(b"\n")[:-1]))


def call_of(block: bytes) -> Call:
    call = read(block)
    assert call is not None
    return call


# -- the environment


def test_what_asterisk_22_sends() -> None:
    call = call_of(ASTERISK_22)
    assert call.script == "record"
    assert call.query == {"x": "1"}
    assert call.args == ("BUSY", "17", "")
    assert [call.arg(n) for n in (0, 1, 2, 3, 4)] == ["", "BUSY", "17", "", ""]
    assert call.arg(4, "none") == "none"
    assert call.arg(3, "none") == ""
    assert call.channel == "PJSIP/1000-00000002"
    assert call.uniqueid == "lab-1795290951.2"
    assert (call.callerid, call.context, call.extension) == ("1000", "phones", "2000")
    assert call.env["calleridname"] == "Alice"
    assert call.env["accountcode"] == ""
    assert call.suspect == ()
    assert not [key for key in call.env if key.startswith("agi_")]


def test_nothing_may_be_assumed_to_be_there() -> None:
    call = call_of(b"agi_request: agi://pbx\n\n")
    assert (call.script, call.query, call.args, call.channel, call.context) == ("", {}, (), "", "")


@pytest.mark.parametrize(
    ("line", "script", "query"),
    [
        (b"agi_network_script: record", "record", {}),
        (b"agi_network_script: /cc/record/", "cc/record", {}),
        (b"agi_network_script: record?", "record", {}),
        (b"agi_network_script: r?a=1&b=&a=2&c=%41+x", "r", {"a": "1", "b": "", "c": "A x"}),
        (b"agi_request: agi://127.0.0.1:4573/record?x=1", "record", {"x": "1"}),
        (b"agi_request: agi://127.0.0.1/", "", {}),
        (b"agi_request: hagi://pbx.example/cc/record", "cc/record", {}),
        (b"agi_request: record", "", {}),
    ],
)
def test_the_script_and_its_query(line: bytes, script: str, query: dict[str, str]) -> None:
    call = call_of(line + b"\n\n")
    assert (call.script, call.query) == (script, query)


def test_values_hold_colons_blanks_and_nothing() -> None:
    call = call_of(b"agi_a: x: y:z\nagi_b:  two blanks \nagi_c:\nagi_d: \nagi_e:v\n\n")
    assert call.env == {"a": "x: y:z", "b": " two blanks ", "c": "", "d": "", "e": "v"}


def test_the_environment_may_come_in_any_portions() -> None:
    lines = ASTERISK_22.split(b"\n")[:-1]
    environment = Environment()
    for line in lines[:-1]:
        assert environment.feed(iter([line])) is None
    assert environment.feed(iter([b""])) == call_of(ASTERISK_22)


def test_what_follows_the_blank_line_is_left() -> None:
    lines = iter([b"agi_type: SIP", b"", b"HANGUP"])
    assert Environment().feed(lines) is not None
    assert list(lines) == [b"HANGUP"]


def test_without_its_blank_line_there_is_no_call() -> None:
    assert read(ASTERISK_22[:-1]) is None


@pytest.mark.parametrize(
    "name",
    [
        "Пётр".encode()[:-1],  # Asterisk cut it in the middle of a character
        "Jürgen".encode("latin-1"),
        "Пётр".encode("cp1251"),
        bytes(range(0x80, 0x100)),
    ],
)
def test_a_name_that_is_not_utf_8_comes_through_and_goes_back(name: bytes) -> None:
    call = call_of(b"agi_calleridname: " + name + b"\nagi_context: x\n\n")
    assert call.context == "x"
    assert command("VERBOSE", call.env["calleridname"]) == b'VERBOSE "' + name + b'"\n'


def test_utf_8_is_decoded() -> None:
    assert call_of("agi_calleridname: Пётр\n\n".encode()).env["calleridname"] == "Пётр"


def test_arguments_stop_at_the_first_gap() -> None:
    call = call_of(b"agi_arg_1: a\nagi_arg_2: b\nagi_arg_4: d\n\n")
    assert call.args == ("a", "b")


def test_twelve_arguments_keep_their_order() -> None:
    block = b"".join([b"agi_arg_%d: %d\n" % (n, n) for n in range(1, 13)])
    assert call_of(block + b"\n").args == tuple(str(n) for n in range(1, 13))


# From "sip:40%0Aagi_channel:%20PJSIP/2000-1@..." chan_pjsip makes a line of its own, right after agi_callerid.
@pytest.mark.parametrize(
    "line",
    [
        b"agi_channel: PJSIP/2000-00000001",  # behind the true one
        b"agi_context: internal",  # before the true one
        b"agi_arg_1: ANSWER",
        b"agi_arg_4: 123",  # not sent by Asterisk itself
    ],
)
def test_lines_that_a_caller_put_in_are_noticed(line: bytes) -> None:
    block = ASTERISK_22.replace(b"agi_callerid: 1000\n", b"agi_callerid: 40\n" + line + b"\n")
    call = call_of(block)
    assert line[4:].partition(b":")[0].decode() in call.suspect
    assert call.channel == "PJSIP/1000-00000002"


def test_an_argument_put_in_behind_a_gap_is_never_read() -> None:
    block = ASTERISK_22.replace(b"agi_callerid: 1000\n", b"agi_callerid: 40\nagi_arg_10: 123\n")
    assert call_of(block).args == ("BUSY", "17", "")


def test_the_first_value_of_a_key_wins() -> None:
    call = call_of(b"agi_channel: first\nagi_channel: second\nagi_channel: third\n\n")
    assert call.channel == "first"
    assert call.suspect == ("channel", "channel")


def test_an_argument_with_a_newline_does_not_shift_the_others_unnoticed() -> None:
    call = call_of(b"agi_arg_1: 40\nagi_arg_2: forged\nagi_arg_2: BUSY\n\n")
    assert call.suspect == ("arg_2",)


@pytest.mark.parametrize(
    "block",
    [
        b"GET / HTTP/1.1\n",
        b"\x16\x03\x01\x02\n",
        b"evil: 1\n",
        b"agi_callerid\n",
        b"agi_type: SIP\r\n\r\n",  # only "\n" ends a line, so this "blank" line is none
        b"agi_a: " + b"x" * 8186 + b"\n",
        b"".join([b"agi_%d: x\n" % n for n in range(129)]),
        b"".join([b"agi_%d: " % n + b"x" * 8000 + b"\n" for n in range(9)]),
    ],
)
def test_what_is_no_environment_is_refused_in_a_sentence(block: bytes) -> None:
    with pytest.raises(WireError) as caught:
        read(block)
    assert isinstance(caught.value, FastagiError)
    assert str(caught.value).endswith(".")
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 500


def test_the_limits_themselves_are_allowed() -> None:
    line = b"agi_a: " + b"x" * 8185
    assert len(line) == 8192
    assert call_of(line + b"\n\n").env["a"] == "x" * 8185
    assert len(call_of(b"".join([b"agi_%d: x\n" % n for n in range(128)]) + b"\n").env) == 128


# -- commands


def split_as_res_agi_does(line: bytes) -> list[bytes]:
    """res_agi.c, parse_args(): blanks part words, quotes join them, a backslash takes the next as it is."""
    words: list[bytearray] = []
    escaped = quoted = False
    between = True
    for n in range(len(line)):
        c = line[n : n + 1]
        if c == b'"' and not escaped:
            quoted = not quoted
            if quoted and between:
                words.append(bytearray())
                between = False
        elif c in (b" ", b"\t") and not quoted and not escaped:
            between = True
        elif c == b"\\" and not escaped:
            escaped = True
        else:
            if between:
                words.append(bytearray())
                between = False
            words[-1] += c
            escaped = False
    return [bytes(word) for word in words]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("ANSWER",), b"ANSWER\n"),
        (("GET", "VARIABLE", "CALLERID(name)"), b'GET VARIABLE "CALLERID(name)"\n'),
        (("SET", "VARIABLE", "CC_OFFERED", "1"), b"SET VARIABLE CC_OFFERED 1\n"),
        (("SET", "VARIABLE", "X", ""), b'SET VARIABLE X ""\n'),
        (("SET", "VARIABLE", "X", 'a "b" c'), b'SET VARIABLE X "a \\"b\\" c"\n'),
        (("SET", "VARIABLE", "X", "back\\"), b'SET VARIABLE X "back\\\\"\n'),
        (("EXEC", "Dial", "PJSIP/1000,20"), b'EXEC Dial "PJSIP/1000,20"\n'),
        (("VERBOSE", "ü", "1"), 'VERBOSE "ü" 1\n'.encode()),
    ],
)
def test_commands(words: tuple[str, ...], line: bytes) -> None:
    assert command(*words) == line


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "a b",
        '"',
        '""',
        "\\",
        '\\"',
        'x" "y',
        'x" HANGUP',
        "a\\",
        "\\\\",
        "#",
        "$(x)",
        "ü",
        "\udcfc",
        "a=(b)",
    ],
)
def test_every_value_arrives_as_one_word(value: str) -> None:
    line = command("SET", "VARIABLE", "X", value)
    assert line.count(b"\n") == 1
    words = split_as_res_agi_does(line[:-1])
    assert words == [b"SET", b"VARIABLE", b"X", value.encode("utf-8", "surrogateescape")]


@pytest.mark.parametrize("control", [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))])
@pytest.mark.parametrize("where", ["{}", "a{}", "{}a", "a{}HANGUP"])
def test_control_characters_are_refused_and_not_repaired(control: str, where: str) -> None:
    with pytest.raises(WireError) as caught:
        command("SET", "VARIABLE", "X", where.format(control))
    assert str(caught.value).startswith("SET VARIABLE X: ")
    assert control not in str(caught.value)


def test_a_control_character_in_any_word_is_refused() -> None:
    with pytest.raises(WireError):
        command("SET", "VARIABLE", "X\nHANGUP", "1")
    with pytest.raises(WireError):
        command("NOOP\nHANGUP")


def test_a_command_has_at_most_2000_bytes_with_its_newline() -> None:
    fits = "x" * (2000 - len("SET VARIABLE X \n"))
    assert len(command("SET", "VARIABLE", "X", fits)) == 2000
    with pytest.raises(WireError, match="2001 bytes"):
        command("SET", "VARIABLE", "X", fits + "x")


def test_the_limit_counts_bytes_not_characters() -> None:
    with pytest.raises(WireError, match="2000"):
        command("VERBOSE", "ü" * 1000)


def test_a_command_has_words_but_fewer_than_asterisk_cuts_off() -> None:
    assert command(*["x"] * 127)
    for words in ([], ["x"] * 128):
        with pytest.raises(WireError, match="words"):
            command(*words)


def test_a_surrogate_that_is_no_byte_is_refused() -> None:
    with pytest.raises(WireError, match="cannot be written as bytes"):
        command("SET", "VARIABLE", "X", "\ud800")


# -- replies


def hear(*lines: bytes) -> list[object]:
    replies = Replies()
    return [replies.feed(line) for line in lines]


@pytest.mark.parametrize(
    ("line", "result", "value", "endpos"),
    [
        (b"200 result=0", "0", None, None),
        (b"200 result=1", "1", None, None),
        (b"200 result=1 (BUSY)", "1", "BUSY", None),
        (b"200 result=1 ()", "1", "", None),
        (b"200 result=1 ( )", "1", " ", None),
        (b"200 result=1 (a b=c (d) e)", "1", "a b=c (d) e", None),
        (b"200 result=1 (a) endpos=7)", "1", "a) endpos=7", None),
        (b"200 result=1 ())", "1", ")", None),
        (b"200 result=1 (PJSIP/2000 endpos=1)", "1", "PJSIP/2000 endpos=1", None),
        (b"200 result=-1 (hangup) endpos=8000", "-1", "hangup", 8000),
        (b"200 result=0 endpos=1234", "0", None, 1234),
        (b"200 result=49 endpos=0", "49", None, 0),
        (b"200 result=-1 endpos=-1", "-1", None, -1),
        (b"200 result= (timeout)", "", "timeout", None),
        (b"200 result=12# (timeout)", "12#", "timeout", None),
        (b"200 result=1 (digit) digit=5 endpos=99", "1", "digit", 99),
        (b"200 result=0 Gosub complete", "0", None, None),
        (b"200 result=1 (\xd0)", "1", "\udcd0", None),
    ],
)
def test_answers(line: bytes, result: str, value: str | None, endpos: int | None) -> None:
    [reply] = hear(line)
    assert isinstance(reply, Reply)
    assert (reply.code, reply.result, reply.value, reply.endpos) == (200, result, value, endpos)
    assert reply.text == line[4:].decode("utf-8", "surrogateescape")


def test_trying_is_not_the_answer() -> None:
    assert hear(b"100 result=0 Trying...", b"200 result=0 Gosub complete") == [
        None,
        Reply(200, "0", None, None, "result=0 Gosub complete"),
    ]


USAGE = (
    b"520-Invalid command syntax.  Proper usage follows:",
    b" Usage: DATABASE GET <family> <key>",
    b"",
    b"520",
    b" \tRetrieves an entry. (200 result=1)",
    b"520 End of proper usage.",
)
USAGE_TEXT = (
    "Invalid command syntax.  Proper usage follows:\n"
    " Usage: DATABASE GET <family> <key>\n\n520\n \tRetrieves an entry. (200 result=1)"
)


def test_a_usage_text_of_many_lines_is_one_reply() -> None:
    assert hear(*USAGE, b"200 result=1") == [
        *[None] * 5,
        Reply(520, text=USAGE_TEXT),
        Reply(200, "1", text="result=1"),
    ]


@pytest.mark.parametrize("place", range(len(USAGE) + 1))
def test_hangup_may_stand_between_any_two_lines(place: int) -> None:
    heard = hear(*USAGE[:place], b"HANGUP", *USAGE[place:])
    assert heard.pop(place) is HANGUP
    assert heard == [*[None] * 5, Reply(520, text=USAGE_TEXT)]


def test_hangup_is_a_whole_line() -> None:
    assert hear(b"200 result=1 (HANGUP)") == [Reply(200, "1", "HANGUP", None, "result=1 (HANGUP)")]


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        (b"510 Invalid or unknown command", 510, "Invalid or unknown command"),
        (
            b"511 Command Not Permitted on a dead channel or intercept routine",
            511,
            "Command Not Permitted on a dead channel or intercept routine",
        ),
        (
            b"520 Invalid command syntax.  Proper usage not available.",
            520,
            "Invalid command syntax.  Proper usage not available.",
        ),
        (b"503", 503, ""),
    ],
)
def test_refusals_of_one_line(line: bytes, code: int, text: str) -> None:
    assert hear(line, b"200 result=1")[0] == Reply(code, text=text)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"agi_dnid: 2000",  # a "%0A%0A" in a SIP user part ended the environment early
        b"hangup",
        b"HANGUP ",
        b"20 result=1",
        b"2000 result=1",
        b"200result=1",
        "٢٠٠ result=1".encode(),
        b"200 result=1 (first line of two",  # a newline in a variable: the rest would answer something else
        b"200 result=1 (x" + b"x" * 65536 + b")",
    ],
)
def test_what_is_no_reply_is_refused(line: bytes) -> None:
    with pytest.raises(WireError) as caught:
        hear(line)
    assert len(str(caught.value)) < 300


def test_a_usage_text_without_an_end_is_refused() -> None:
    with pytest.raises(WireError, match="128 lines"):
        hear(USAGE[0], *[b"x"] * 200)
    with pytest.raises(WireError, match="65536 bytes"):
        hear(USAGE[0], *[b"x" * 9000] * 10)


# -- what a reply means


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"200 result=-1", AGIAppError),
        (b"200 result=-1 endpos=4000", AGIAppError),
        (b"200 result=-1 (hangup) endpos=4000", AGIResultHangup),
        (b"510 Invalid or unknown command", AGIInvalidCommand),
        (b"511 Command Not Permitted on a dead channel or intercept routine", AGIHangup),
        (b"520 Invalid command syntax.  Proper usage not available.", AGIUsageError),
        (b"503 What", AGIUnknownError),
    ],
)
def test_errors_are_those_that_agi_authors_know(line: bytes, error: type[Exception]) -> None:
    [reply] = hear(line)
    assert isinstance(reply, Reply)
    raised = error_of(reply)
    assert type(raised) is error
    assert isinstance(raised, AGIException)
    assert str(raised).endswith(".")


@pytest.mark.parametrize(
    "line", [b"200 result=0", b"200 result=1 (hangup)", b"200 result=1 (-1)", b"200 result= (timeout)"]
)
def test_what_is_no_error(line: bytes) -> None:
    [reply] = hear(line)
    assert isinstance(reply, Reply)
    assert error_of(reply) is None


def test_a_usage_error_holds_the_usage() -> None:
    reply = hear(*USAGE)[-1]
    assert isinstance(reply, Reply)
    assert str(error_of(reply)) == USAGE_TEXT


def test_importing_sets_no_signal_handler() -> None:
    """pyst2's AGI() takes SIGHUP, and fails outside of the main thread; its exceptions alone must not."""
    code = "import signal, fastagi.agi.wire as w; print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "True\n"


FULL = [
    "network",
    "request",
    "channel",
    "language",
    "type",
    "uniqueid",
    "version",
    "callerid",
    "calleridname",
    "callingpres",
    "callingani2",
    "callington",
    "callingtns",
    "dnid",
    "rdnis",
    "context",
    "extension",
    "priority",
    "enhanced",
    "accountcode",
    "threadid",
    "arg_1",
]


def full(*, without: str = "", after: str = "", more: str = "") -> Call:
    lines = []
    for key in FULL:
        if key != without:
            lines.append(f"agi_{key}: x".encode())
        if key == after:
            lines.append(f"agi_{more}: x".encode())
    call = Environment().feed(iter([*lines, b""]))
    assert call is not None
    return call


def test_what_an_asterisk_sends_is_in_order() -> None:
    assert full().suspect == ()


@pytest.mark.parametrize("key", ["callerid", "calleridname", "dnid", "rdnis", "extension", "accountcode"])
def test_a_line_after_what_a_caller_can_write(key: str) -> None:
    assert full(after=key, more="evil").suspect == ("evil",)


def test_a_new_key_of_a_later_asterisk_elsewhere_is_no_attack() -> None:
    for key in ("type", "callingtns", "priority", "threadid"):
        assert full(after=key, more="novelty").suspect == ()


@pytest.mark.parametrize("key", FULL[8:-1])
def test_a_block_that_was_cut_short(key: str) -> None:
    assert key in full(without=key).suspect
