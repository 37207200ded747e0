"""SIP over TCP: messages out of bytes however they are cut, and never a stall."""

import random
import time

import pytest

from fastagi.sip.message import MAX_LINE, MAX_MESSAGE, BadRequest, Malformed, Request, Response, parse
from fastagi.sip.stream import Framer, Ping, Received


def message(number: int, body: bytes = b"", length: str | None = None) -> bytes:
    head = (
        f"MESSAGE sip:{number}@h SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK{number}\r\n"
        f"From: <sip:b@h>;tag=1\r\nTo: <sip:a@h>\r\nCall-ID: {number}\r\nCSeq: 1 MESSAGE\r\n"
    )
    wanted = str(len(body)) if length is None else length
    return (head + (f"Content-Length: {wanted}\r\n" if wanted else "") + "\r\n").encode() + body


RESPONSE = b"SIP/2.0 200 OK\r\n" + message(3, b"ok").partition(b"\r\n")[2]
THREE = message(1, b"\r\n\r\nINVITE x") + message(2) + RESPONSE


def uris(received: list[Received]) -> list[str]:
    return [m.uri if isinstance(m, Request) else type(m).__name__ for m in received]


def last(received: list[Received]) -> Malformed:
    error = received[-1]
    assert isinstance(error, Malformed)
    return error


def test_several_at_once() -> None:
    framer = Framer()
    received = framer.feed(THREE)
    assert received == [parse(message(1, b"\r\n\r\nINVITE x")), parse(message(2)), parse(RESPONSE)]
    assert [m.body for m in received if isinstance(m, Request | Response)] == [
        b"\r\n\r\nINVITE x",
        b"",
        b"ok",
    ]
    assert not framer.waiting
    assert not framer.broken


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_however_they_are_cut(size: int) -> None:
    framer = Framer()
    stream = b"\r\n" + THREE + b"\r\n" + THREE
    received = [m for at in range(0, len(stream), size) for m in framer.feed(stream[at : at + size])]
    assert received == Framer().feed(THREE) * 2


def test_a_message_comes_out_with_its_last_byte() -> None:
    framer = Framer()
    for byte in message(1, b"abc")[:-1]:
        assert framer.feed(bytes([byte])) == []
        assert framer.waiting
    assert uris(framer.feed(b"c")) == ["sip:1@h"]
    assert not framer.waiting


def test_keep_alives() -> None:
    framer = Framer()
    assert framer.feed(b"\r\n") == []
    assert framer.feed(b"\r") == []
    assert framer.feed(b"\n") == [Ping()]
    assert framer.feed(b"\r\n" * 30000) == [Ping()]
    assert not framer.waiting
    assert uris(framer.feed(b"\r\n" + message(1) + b"\r\n\r\n" + message(2))) == [
        "sip:1@h",
        "Ping",
        "sip:2@h",
    ]
    assert framer.feed(b"\r\n") == []
    assert uris(framer.feed(message(4))) == ["sip:4@h"]
    assert framer.feed(b"\r\n") == []


@pytest.mark.parametrize(
    ("data", "status", "answerable"),
    [
        (message(1, length=""), 400, True),
        (message(1, length="-1"), 400, True),
        (message(1, length="x"), 400, True),
        (message(1, length="0\r\nl: 3"), 400, True),
        (message(1, length="65536"), 413, True),
        (message(1, length="2000000000"), 413, True),
        (message(1, length="9" * 5000), 413, True),
        (RESPONSE.replace(b"Content-Length: 2\r\n", b""), 400, False),
        (message(1).replace(b"Via", b"Vla").replace(b"Content", b"Kontent"), 400, False),
        (message(1, b"longer than said", length="3"), 400, False),
        (message(1, b"v=0\r\no=-\r\n", length="0"), 400, False),
        (b"GET / HTTP/1.1\r\n", 400, False),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, False),
        (b"\x00", 400, False),
        (b"MESSAGE sip:a SIP/3.0\r\n", 505, False),
        (b"a" * (MAX_LINE + 1), 513, False),
        (b"MESSAGE sip:" + b"a" * MAX_LINE + b" SIP/2.0\r\n", 513, False),
        (b"MESSAGE sip:a SIP/2.0\r\n" + b"a: b\r\n" * 11000, 513, False),
        (b"MESSAGE sip:a SIP/2.0\r\n" + b"a: b\r\n" * 11000 + b"\r\n", 513, False),
        (b"MESSAGE sip:a SIP/2.0\r\n" + b"a: b\r\n" * 201 + b"\r\n", 513, False),
        (b"MESSAGE sip:a SIP/2.0\r\nno header\r\n\r\n", 400, False),
        (b"MESSAGE sip:a SIP/2.0\r\nX: a\nb\r\n\r\n", 400, False),
    ],
    ids=lambda value: str(value[:60]) if isinstance(value, bytes) else str(value),
)
def test_what_breaks_a_connection(data: bytes, status: int, answerable: bool) -> None:
    framer = Framer()
    good = framer.feed(message(7))
    received = framer.feed(data + b"\r\n" + message(8) if data.endswith(b"said") else data)
    error = last(received)
    assert uris(good) == ["sip:7@h"]
    assert (error.status, isinstance(error, BadRequest)) == (status, answerable)
    assert framer.broken
    assert framer.feed(message(8)) == []
    assert not framer.waiting
    # The same if it comes byte by byte
    slow = Framer()
    seen = [m for at in range(len(data)) for m in slow.feed(data[at : at + 1])]
    if data.endswith(b"said"):
        seen += slow.feed(b"\r\n")
    assert (last(seen).status, str(last(seen))) == (error.status, str(error))


def test_a_bad_message_whose_end_is_known_breaks_nothing() -> None:
    framer = Framer()
    bad = message(2, b"abc").replace(b"1 MESSAGE", b"1 INVITE")
    received = framer.feed(message(1) + bad + message(3))
    assert uris(received) == ["sip:1@h", "BadRequest", "sip:3@h"]
    error = received[1]
    assert isinstance(error, BadRequest)
    assert error.request.response(error.status).get("call-id") == "2"
    assert not framer.broken


def test_the_largest_message() -> None:
    room = MAX_MESSAGE - len(message(1, length="65000"))
    framer = Framer()
    (largest,) = framer.feed(message(1, b"x" * room))
    assert isinstance(largest, Request)
    assert len(largest.body) == room
    assert last(framer.feed(message(1, b"x" * (room + 1)))).status == 413


def test_a_length_too_great_waits_and_breaks_with_what_comes_next() -> None:
    framer = Framer()
    assert framer.feed(message(1, b"abc", length="10")) == []
    assert framer.waiting
    received = framer.feed(message(2) + message(3))
    assert uris(received) == ["sip:1@h", "Malformed"] or uris(received)[:2] == ["sip:1@h", "BadRequest"]


def test_random_streams_end_in_messages_or_malformed() -> None:
    rng = random.Random(18)
    broken = went_on = 0
    for _ in range(3000):
        stream = bytearray(THREE * 2)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(stream))
            if rng.random() < 0.5:
                stream[at] = rng.randrange(256)
            else:
                stream[at:at] = rng.choice((b"\r\n", b"\r\n\r\n", b"\n", b"0", b" ", b"\x00", b"l: 5\r\n"))
        framer, whole = Framer(), Framer()
        received: list[Received] = []
        at = 0
        while at < len(stream):
            size = rng.choice((1, 5, 50, 500))
            received += framer.feed(bytes(stream[at : at + size]))
            at += size
        at_once = whole.feed(bytes(stream))
        assert [str(m) for m in received if not isinstance(m, Ping)] == [
            str(m) for m in at_once if not isinstance(m, Ping)
        ]
        assert framer.broken == whole.broken
        if framer.broken:
            broken += 1
            assert isinstance(received[-1], Malformed)
        else:
            went_on += 1
    assert min(broken, went_on) > 300


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"MESSAGE sip:a SIP/2.0\r\n", b"a: b\r\n"),
        (b"", b"a"),
        (b"", b"\r\n"),
        (message(1, length="60000"), b"\r\n"),
        (b"", message(1)),
    ],
    ids=["headers", "first line", "blanks", "body", "messages"],
)
def test_time_grows_with_length_and_no_faster(head: bytes, piece: bytes) -> None:
    """In single bytes, and all at once."""

    def best(size: int, step: int) -> float:
        data = head + piece * (size // len(piece))
        times = []
        for _ in range(3):
            framer = Framer()
            start = time.perf_counter()
            for at in range(0, len(data), step):
                framer.feed(data[at : at + step])
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(56000, 1) < 30 * best(7000, 1) + 0.0005
    assert best(512000, 10**6) < 30 * best(64000, 10**6) + 0.0005
