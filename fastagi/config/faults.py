"""What one key alone can get wrong: the content in its sections, or a sentence for each fault pydantic finds."""

import difflib
from typing import Literal, get_args, get_origin

from pydantic import ValidationError

from fastagi.config import sections
from fastagi.config.plain import Location, shown, where
from fastagi.config.source import Source

_SECTIONS: dict[str, type[sections.Section]] = {
    "fastagi": sections.Fastagi,
    "asterisk": sections.Asterisk,
    "defaults": sections.Defaults,
    "extensions": sections.Entry,
    "trunks": sections.Trunk,
}
_KEYS = (
    "1 to 40 of 0-9 * # +, or _ and up to 40 of 0-9 * # + X Z N and sets such as [1-5*], with . or ! only at"
    " the end,"
)


def checked(source: Source) -> sections.File:
    """The file in its sections; raises `ConfigError` with all faults that the source has then."""
    try:
        file = sections.File.model_validate(source.content)
    except ValidationError as found:
        for fault in found.errors(include_url=False, include_context=False):
            at = fault["loc"]
            source.fault(at, _sentence(at, fault["type"], fault["input"]))
    source.raise_faults()
    return file


def _sentence(at: Location, kind: str, value: object) -> str:
    """A fault that pydantic found, in our words."""
    if kind == "extra_forbidden":
        return _unknown(at)
    if kind in ("model_type", "dict_type"):
        return f"{where(at)} is {shown(value)}: a mapping of keys to values is allowed"
    if kind == "missing":
        return f"{where(at)} is missing: {allowed(at)} is needed"
    if at[-1:] == ("[key]",) and at[0] == "trunks":
        return f"{where(at[:-1])} is no name of a trunk: 1 to 40 letters, digits, _ . or - are allowed"
    if at[-1:] == ("[key]",):
        return f"{where(at[:-1])} is neither a number nor a pattern: {_KEYS} is allowed"
    if kind == "too_long" and isinstance(value, list):
        return f"{where(at)} is a list of {len(value)}: {allowed(at)} is allowed"
    return f"{where(at)} is {shown(value)}: {allowed(at)} is allowed"


def _unknown(at: Location) -> str:
    keys = list(_section(at).model_fields)
    name = str(at[-1])[:60]
    hint = ""
    if homes := [title for title, section in _SECTIONS.items() if name in section.model_fields]:
        hint = f" (it belongs in {' or '.join(homes)})"
    elif near := difflib.get_close_matches(name, keys, n=1):
        hint = f" (did you mean {near[0]}?)"
    return f"{where(at)} is not a key here{hint}: {', '.join(keys[:-1])} and {keys[-1]} are allowed"


def _section(at: Location) -> type[sections.Section]:
    """Whose key this is."""
    if at[:2] == ("asterisk", "ami") and len(at) > 2:
        return sections.Ami
    return sections.File if len(at) == 1 else _SECTIONS[str(at[0])]


def allowed(at: Location) -> str:
    """The end of the sentence about this key, "... is allowed"."""
    at = at[:-1] if isinstance(at[-1], int) else at  # of an item, the sentence about its list tells
    field = _section(at).model_fields[str(at[-1])]
    if get_origin(field.annotation) is Literal:
        *first, last = get_args(field.annotation)
        return f"{', '.join(first)} or {last}"
    bounds = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in ("ge", "le")
        if hasattr(bound, name)
    }
    return f"{field.description} from {bounds['ge']} to {bounds['le']}" if bounds else str(field.description)
