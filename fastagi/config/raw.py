"""What is valid in a content that is not checked yet: whatever is not, is told elsewhere (faults.py)."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastagi.completion.model import Device
from fastagi.config import values

_T = TypeVar("_T")


def mapping_at(content: object, key: str) -> dict[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def given(section: object, key: str, check: Callable[[Any], _T], default: _T) -> _T | None:
    """The value of this key; the default where it is not there, None where it is not valid."""
    return valid(check, section[key]) if isinstance(section, dict) and key in section else default


def items(section: object, key: str, check: Callable[[Any], _T]) -> dict[int, _T]:
    """What is valid in the list that this key has, by place."""
    found = section.get(key) if isinstance(section, dict) else None
    items = enumerate(found if isinstance(found, list) else [])
    return {place: value for place, item in items if (value := valid(check, item)) is not None}


def valid(check: Callable[[Any], _T], value: object) -> _T | None:
    """None where it is not valid: that fault is told elsewhere."""
    try:
        return check(value)
    except ValueError:
        return None


def devices(entry: object) -> tuple[Device, ...]:
    """Those that an entry of ``extensions`` names."""
    return given(entry, "device", values.devices, ()) or ()
