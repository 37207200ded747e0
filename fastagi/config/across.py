"""What only two keys together can get wrong."""

from fastagi.completion.model import Device
from fastagi.config import sections, values
from fastagi.config.plain import Location, shown, where, whose
from fastagi.config.raw import devices, given, mapping_at, valid
from fastagi.config.source import Source
from fastagi.config.trunks import look_at_trunks
from fastagi.directory import Pattern


def look_across(source: Source) -> None:
    """Adds these faults to the source's, beside all the others: so it looks at the content as it stands there."""
    _look_at_paths(source)
    _look_at_ami(source)
    look_at_trunks(source)
    _look_at_extensions(source)


def _look_at_paths(source: Source) -> None:
    section, defaults = mapping_at(source.content, "asterisk"), sections.Asterisk()
    spool = given(section, "spool", values.path, defaults.spool)
    temp = given(section, "temp", values.path, defaults.temp)
    if temp and temp == spool:
        sentence = f"is {shown(str(temp))}, the spool itself: another folder of its file system is allowed"
        source.fault(("asterisk", "temp"), f"asterisk / temp {sentence}")
    store = given(source.content, "store", values.path, sections.STORE)
    if not store:
        return
    beside = store.parent / sections.SOCKET
    control = given(mapping_at(source.content, "fastagi"), "control", values.path, beside)
    if control == store:
        source.fault(("store",), f"store is {shown(str(store))}, the control socket: another file is allowed")


def _look_at_ami(source: Source) -> None:
    asterisk = mapping_at(source.content, "asterisk")
    if asterisk.get("recall") == "originate" and "ami" not in asterisk:
        sentence = "is 'originate', which goes through AMI: asterisk / ami is needed"
        source.fault(("asterisk", "recall"), f"asterisk / recall {sentence}")
    ami = mapping_at(asterisk, "ami")
    if given(ami, "ca", values.path, None) and given(ami, "tls", values.yes_or_no, False) is False:
        sentence = "stands beside tls: no, and nothing would be encrypted: it needs tls: yes"
        source.fault(("asterisk", "ami", "ca"), f"asterisk / ami / ca {sentence}")


def _look_at_extensions(source: Source) -> None:
    patterns: dict[object, Location] = {}
    numbers: dict[Device, Location] = {}
    for key, entry in mapping_at(source.content, "extensions").items():
        at = ("extensions", key)
        if key.startswith("_"):
            _look_at_pattern(source, at, key, patterns)
        else:
            _look_at_devices(source, (*at, "device"), devices(entry), numbers)


def _look_at_pattern(source: Source, at: Location, key: str, taken: dict[object, Location]) -> None:
    if (pattern := valid(Pattern, key)) and (other := taken.setdefault(pattern.rank, at)) != at:
        same = f"the same pattern as {whose(other)} in line {source.line(other)}"
        source.fault(at, f"{where(at)} is {same}: one entry for each is allowed")


def _look_at_devices(
    source: Source, at: Location, named: tuple[Device, ...], taken: dict[Device, Location]
) -> None:
    """Whoever calls from a device must be one number; a pattern's device may be that of each of its numbers."""
    for device in named:
        if (other := taken.setdefault(device, at)) != at:
            same = f"{device}, as {whose(other)} does in line {source.line(other)}"
            source.fault(at, f"{where(at)} names {same}: one exact number for each device is allowed")
