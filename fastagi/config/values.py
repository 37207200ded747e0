"""One strict check for each kind of value: takes what stands in the file, returns it ready for use.

Each raises ValueError where the value is none of its kind.  Nobody sees that error's text: the sentence that
tells the fault says what is allowed (sections.py).
"""

import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TypeVar

from fastagi.completion import model
from fastagi.completion.model import Device, Invalid
from fastagi.config.plain import NUMBER
from fastagi.directory import Pattern
from fastagi.sip.trunk import Address
from fastagi.sip.uri import Malformed, Uri

_T = TypeVar("_T")


def text(value: object) -> str:
    if isinstance(value, str):
        return str(value)
    raise ValueError("no text")


def decimal(value: object) -> object:
    """The number that is written there; anything else stays what it is, which is no number."""
    if type(value) is str and NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return value


_YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}


def yes_or_no(value: object) -> bool:
    if (word := text(value)) not in _YES_OR_NO:
        raise ValueError("neither yes nor no")
    return _YES_OR_NO[word]


def path(value: object) -> Path:
    written = text(value)
    # normpath keeps two leading slashes, and hides what says that a folder is meant, be it / itself.
    if not written.startswith("/") or written.endswith(("/", "/.", "/..")) or not written.isprintable():
        raise ValueError("not an absolute path")
    return Path("/" + os.path.normpath(written).lstrip("/"))


# Extensions


def key(value: object) -> str:
    """A number or a pattern."""
    written = text(value)
    return Pattern(written).text if written.startswith("_") else _checked(model.number, written)


def name(value: object) -> str:
    """What a caller ID can hold."""
    return _printable(value, 80, without='"<>\\')


def devices(value: object) -> tuple[Device, ...]:
    found = _checked(model.devices, text(value))
    if len(set(found)) < len(found):
        raise ValueError("a device is named twice")
    return found


_DIALSTRING_PART = re.compile(r"""[A-Za-z][A-Za-z0-9]*/[^\s&,;$"'`\\]+""", re.ASCII)


def dialstring(value: object) -> str:
    written = _ascii(_printable(value, 400))
    if not all(map(_DIALSTRING_PART.fullmatch, written.split("&"))):
        raise ValueError("no dial string")
    return written


def hint(value: object) -> str:
    _checked(model.hint, written := text(value))
    return written


def offer_digit(value: object) -> str:
    return _matching(r"off|[0-9*#]", value)


def alert_info(value: object) -> str:
    """What stands in a SIP header, by way of a dialplan variable."""
    return _ascii(_printable(value, 200, without=",$\"'`\\()"))


# AMI


_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", re.ASCII)


def host(value: object) -> str:
    written = _matching(r"[A-Za-z0-9.:-]{1,253}", value)
    if ":" in written:
        return str(IPv6Address(written))
    if not all(_LABEL.fullmatch(label) for label in written.split(".")):
        raise ValueError("no name of a host")
    return written


def username(value: object) -> str:
    return _matching(r"[A-Za-z0-9_.-]{1,80}", value)


# Trunks


def trunk_name(value: object) -> str:
    return _matching(r"[A-Za-z0-9_.-]{1,40}", value)


def endpoint(value: object) -> str:
    _checked(model.device, f"PJSIP/{(written := text(value))}")
    return written


def subscribe_from(value: object) -> str:
    """``caller``, or what can stand between the < and > of a From."""
    written = _ascii(_printable(value, 400, without=' "<>'))
    if written == "caller":
        return written
    uri = _checked(Uri.parse, written)
    if uri.scheme != "sip" or not uri.host or uri.headers:
        raise ValueError("no sip URI of somebody")
    return written


# Addresses

WILDCARDS = ("0.0.0.0", "::")


def version(address: Address) -> int:
    return 6 if ":" in address.host else 4


def network(value: object) -> IPv4Network | IPv6Network:
    if "%" in (written := text(value)):
        raise ValueError("no zones")
    return ip_network(written)


def listen(value: object) -> Address:
    parts = re.fullmatch(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\]):([1-9][0-9]{0,4})", text(value))
    if not parts or int(parts[3]) > 65535:
        raise ValueError("not ADDRESS:PORT")
    ip = ip_address(parts[1] or parts[2])
    if ip.version != (4 if parts[1] else 6):
        raise ValueError("brackets are for IPv6")
    return Address(str(ip), int(parts[3]))


def trunk_listen(value: object) -> tuple[str, Address]:
    transport, _, place = text(value).partition(":")
    if transport not in ("udp", "tcp"):
        raise ValueError("neither udp nor tcp")
    return transport, _of_one_machine(place)


def address(value: object) -> Address:
    """Where somebody can be reached."""
    if (found := _of_one_machine(value)).host in WILDCARDS:
        raise ValueError("nobody's address")
    return found


def _of_one_machine(value: object) -> Address:
    found = listen(value)
    ip = ip_address(found.host)
    if ip.is_multicast or (isinstance(ip, IPv6Address) and ip.ipv4_mapped):
        raise ValueError("not the address of one machine, or an IPv4 address in the dress of IPv6")
    return found


# What they have in common


def _checked(check: Callable[[str], _T], written: str) -> _T:
    try:
        return check(written)
    except (Invalid, Malformed) as error:
        raise ValueError(str(error)) from None


def _matching(expression: str, value: object) -> str:
    if not re.fullmatch(expression, written := text(value), re.ASCII):
        raise ValueError(f"not {expression}")
    return written


def _printable(value: object, at_most: int, without: str = "") -> str:
    written = text(value)
    if len(written) > at_most or not written.isprintable() or set(written) & set(without):
        raise ValueError(f"not at most {at_most} printable characters without {without}")
    return written


def _ascii(written: str) -> str:
    if not written.isascii():
        raise ValueError("not ASCII")
    return written
