"""SIP URIs (RFC 3261, 19.1): taken apart, compared, and given back byte for byte.

A URI of a peer is the key of its queue, so nothing of it is ever normalised: ``str(Uri.parse(text))`` is
``text``.  Real peers are met half-way: the user part may hold ``;`` and blanks (``sip:CC_856;76 @;x=y``) and
the host may be empty; ``usable()`` makes of such a one what can stand in a request line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from fastagi.errors import FastagiError

Params = tuple[tuple[str, str | None], ...]
"""Parameters in their order, names and values as received; None: a flag without ``=``."""


class Malformed(FastagiError):
    """What came is not SIP, or more of it than is taken.  The message never holds what the peer wrote.

    ``status`` is what to answer if it was a request: 400, 413, 505, 513.
    """

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


def find_param(params: Params, name: str) -> str | None:
    """The value of the first parameter of that name in any case: "" if it is a flag, None if there is none."""
    for key, value in params:
        if key == name or key.lower() == name:
            return "" if value is None else value
    return None


_NEVER: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f<>]")  # would end the line or the brackets around it
_SCHEME: Final = re.compile(r"[ \t]*([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?:[ \t]*:[ \t]*([0-9]{1,5}))?")
_RESERVED: Final = ";/?:@&=+$,"
_ESCAPED: Final = re.compile("%([0-9A-Fa-f]{2})")
# 19.1.4: these count even if only one of the two has them (transport by the examples there, not by its text).
_NEVER_IGNORED: Final = frozenset({"user", "ttl", "method", "maddr", "transport"})
_PARAM_CHARS: Final = "[]/:&+$-_.!~*'()"
_USER_CHARS: Final = "&=+$,;?/-_.!~*'()"


@dataclass(frozen=True, slots=True)
class Uri:
    """One URI.  Two are equal if their texts are; whether they mean the same is ``matches()``.

    Of a scheme other than sip and sips only ``scheme``, ``user`` (all up to the first ``;`` of a tel URI, all
    of any other) and ``params`` (of a tel URI) are filled.
    """

    text: str
    scheme: str  # in small letters
    user: str  # verbatim, escapes and blanks included; "": none
    password: str | None
    host: str  # as received, IPv6 in its brackets; "": the peer left it out
    port: int | None
    params: Params
    headers: str  # what follows the "?", verbatim

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Raises Malformed (400)."""
        if _NEVER.search(text):
            raise Malformed("A URI holds characters that can be in none.")
        start = _SCHEME.match(text)
        if start is None:
            raise Malformed("A URI has no scheme.")
        scheme = start[1].lower()
        if scheme not in ("sip", "sips"):
            return cls._other(text, scheme, text[start.end() :])
        before, at, after = text[start.end() :].partition("@")
        if not at:
            before, after = "", before
        user, colon, password = before.partition(":")
        host_port, params, headers = _cut(after)
        found = _HOST_PORT.fullmatch(host_port.strip(" \t"))
        if found is None:
            raise Malformed("A URI has a host or a port that cannot be.")
        port = None if found[2] is None else int(found[2])
        if port is not None and port > 65535:
            raise Malformed("A URI has a port above 65535.")
        if not found[1] and not user.strip(" \t"):
            raise Malformed("A URI has neither a user nor a host.")
        return cls(
            text,
            scheme,
            user,
            password if colon else None,
            found[1],
            port,
            _split_params(params),
            headers[1:],
        )

    @classmethod
    def _other(cls, text: str, scheme: str, rest: str) -> Uri:
        params = ""
        if scheme == "tel":
            rest, semicolon, params = rest.partition(";")
            params = semicolon + params
        if not rest.strip(" \t"):
            raise Malformed("A URI has nothing behind its scheme.")
        return cls(text, scheme, rest, None, "", None, _split_params(params), "")

    @classmethod
    def of(cls, user: str, host: str, port: int | None = None, **params: str) -> Uri:
        """A sip URI of our own.  ``user`` is escaped, an IPv6 ``host`` put in brackets; a value "" is a flag."""
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        text = f"sip:{quote(user, safe=_USER_CHARS, errors='surrogateescape')}@" if user else "sip:"
        uri = cls.parse(text + (host if port is None else f"{host}:{port}"))
        for name, value in params.items():
            uri = uri.with_param(name, value)
        return uri

    def __str__(self) -> str:
        return self.text

    def param(self, name: str) -> str | None:
        """The value of a parameter, given by its name in small letters: "" for a flag, None for none."""
        return find_param(self.params, name)

    def with_param(self, name: str, value: str = "") -> Uri:
        """With that parameter, in the place of those of this name; all else stays as it is.

        Of a scheme other than sip, sips and tel nobody knows where parameters go: nothing changes.
        """
        value = quote(value, safe=_PARAM_CHARS, errors="surrogateescape")
        return self._changed(name, f";{name}={value}" if value else f";{name}")

    def without_param(self, name: str) -> Uri:
        return self._changed(name, "")

    def _changed(self, name: str, new: str) -> Uri:
        if self.scheme not in ("sip", "sips", "tel"):
            return self
        body, params, headers = self._parts()
        kept = "".join(
            p for p in _pieces(params) if p[1:].partition("=")[0].strip(" \t").lower() != name.lower()
        )
        return Uri.parse(body + kept + new + headers)

    def _parts(self) -> tuple[str, str, str]:
        """The text up to the parameters, the parameters with their ``;``, the headers with their ``?``."""
        if self.scheme not in ("sip", "sips"):
            body, semicolon, params = self.text.partition(";")
            return body, semicolon + params, ""
        at = self.text.find("@") + 1 or self.text.index(":") + 1
        host_port, params, headers = _cut(self.text[at:])
        return self.text[:at] + host_port, params, headers

    def usable(self, host: str, port: int | None = None) -> Uri:
        """As a request line can carry it: no blanks, and ``host`` and ``port`` where the peer named no host."""
        body, params, headers = self._parts()
        if not self.host and self.scheme in ("sip", "sips"):
            place = f"[{host}]" if ":" in host and not host.startswith("[") else host
            ours = port if self.port is None else self.port
            body = body[: body.index("@") + 1] + (place if ours is None else f"{place}:{ours}")
        text = (body + params + headers).replace(" ", "").replace("\t", "")
        return self if text == self.text else Uri.parse(text)

    def matches(self, other: Uri) -> bool:
        """Whether both mean the same (19.1.4).  Not transitive, hence not ``==``."""
        if self.scheme != other.scheme:
            return False
        if self.scheme not in ("sip", "sips"):
            return _plain(self.text).lower() == _plain(other.text).lower()
        if (_plain(self.user), self.port, self.host.lower()) != (
            _plain(other.user),
            other.port,
            other.host.lower(),
        ):
            return False
        if (self.password is None) != (other.password is None):
            return False
        if _plain(self.password or "") != _plain(other.password or ""):
            return False
        mine, theirs = _param_dict(self.params), _param_dict(other.params)
        for name in mine.keys() | theirs.keys():
            if name in mine and name in theirs:
                if mine[name] != theirs[name]:
                    return False
            elif name in _NEVER_IGNORED:
                return False
        return _header_list(self.headers) == _header_list(other.headers)


def _cut(text: str) -> tuple[str, str, str]:
    """``host:port``, ``;parameters`` and ``?headers`` of what follows the user part."""
    text, mark, headers = text.partition("?")
    host_port, semicolon, params = text.partition(";")
    return host_port, semicolon + params, mark + headers


def _pieces(params: str) -> list[str]:
    return [f";{p}" for p in params.split(";")[1:]]


def _split_params(params: str) -> Params:
    found: list[tuple[str, str | None]] = []
    for piece in params.split(";"):
        name, equals, value = piece.partition("=")
        name = name.strip(" \t")
        if name:
            found.append((name, value.strip(" \t") if equals else None))
    return tuple(found)


def _plain(text: str) -> str:
    """With every escape undone that means the same unescaped (19.1.4); those of reserved characters stay."""

    def one(escape: re.Match[str]) -> str:
        char = chr(int(escape[1], 16))
        return char if "!" <= char <= "~" and char not in _RESERVED + "%" else escape[0].upper()

    return _ESCAPED.sub(one, text.strip(" \t"))


def _param_dict(params: Params) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in params:
        found.setdefault(_plain(name).lower(), _plain(value or "").lower())
    return found


def _header_list(headers: str) -> list[tuple[str, str]]:
    pairs = (h.partition("=") for h in headers.split("&") if h)
    return sorted((_plain(name).lower(), _plain(value)) for name, _, value in pairs)
