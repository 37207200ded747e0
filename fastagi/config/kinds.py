"""The kinds of value for the sections: the check of each, and what a fault's sentence says is allowed.

A description is the end of that sentence, "... is allowed".  Bounds and choices need none: they are read from
the kind itself.
"""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from fastagi.completion.model import Device
from fastagi.config import values
from fastagi.sip.trunk import Address

_NUMBER = BeforeValidator(values.decimal)
_WORD = BeforeValidator(values.text)

Seconds = Annotated[float, _NUMBER, Field(allow_inf_nan=False, description="a number of seconds")]
Timer = Annotated[Seconds, Field(ge=1, le=604_800)]
Days = Annotated[float, _NUMBER, Field(allow_inf_nan=False, description="a number of days")]
Count = Annotated[int, _NUMBER, Field(description="a whole number")]
Few = Annotated[Count, Field(ge=1, le=10_000)]
YesOrNo = Annotated[bool, PlainValidator(values.yes_or_no), Field(description="yes or no")]

_A_PATH = "an absolute path"
AbsolutePath = Annotated[Path, PlainValidator(values.path), Field(description=_A_PATH)]
PathOrNone = Annotated[Path | None, PlainValidator(values.path), Field(description=_A_PATH)]

# Addresses

Listen = Annotated[
    Address,
    PlainValidator(values.listen),
    Field(description="an IP address and a port from 1 to 65535, as 127.0.0.1:4573 or '[::1]:4573',"),
]
TrunkListen = Annotated[
    tuple[str, Address],
    PlainValidator(values.trunk_listen),
    Field(
        description="udp: or tcp:, an IP address and a port from 1 to 65535, as udp:192.0.2.1:5070 or"
        " 'tcp:[2001:db8::1]:5070',"
    ),
]
_AN_ADDRESS = (
    "the IP address of one machine and a port from 1 to 65535, as 192.0.2.10:5060 or '[2001:db8::10]:5060',"
)
AddressOrNone = Annotated[Address | None, PlainValidator(values.address), Field(description=_AN_ADDRESS)]
Peers = Annotated[
    list[Annotated[Address, PlainValidator(values.address)]],
    Field(min_length=1, max_length=8, description=f"a list of 1 to 8, each {_AN_ADDRESS}"),
]
Networks = Annotated[
    list[Annotated[IPv4Network | IPv6Network, PlainValidator(values.network)]],
    Field(description="a list of addresses and of networks (10.0.0.0/8: no bit set beyond the length)"),
]

# Asterisk

Recall = Annotated[Literal["callfile", "originate"], _WORD]
Port = Annotated[Count, Field(ge=1, le=65535)]
Host = Annotated[
    str,
    PlainValidator(values.host),
    Field(description="an IP address or a host name, at most 253 letters, digits, - . and :,"),
]
Username = Annotated[
    str, PlainValidator(values.username), Field(description="1 to 80 letters, digits, _ . or -,")
]

# Extensions

Policy = Annotated[Literal["generic", "never"], _WORD]
Monitor = Annotated[Literal["device", "hint"], _WORD]
Announce = Annotated[Literal["off", "beep", "number"], _WORD]
DeviceState = Annotated[
    Literal[
        "UNKNOWN", "NOT_INUSE", "INUSE", "BUSY", "INVALID", "UNAVAILABLE", "RINGING", "RINGINUSE", "ONHOLD"
    ],
    _WORD,
]
Key = Annotated[str, PlainValidator(values.key)]
CallerIdName = Annotated[
    str,
    PlainValidator(values.name),
    Field(description='a text of at most 80 printable characters without ", <, > and \\'),
]
OfferDigit = Annotated[str, PlainValidator(values.offer_digit), Field(description="off, or one of 0-9 * #,")]
AlertInfo = Annotated[
    str,
    PlainValidator(values.alert_info),
    Field(description="a text of at most 200 printable ASCII characters without , $ \" ' ` \\ ( and ),"),
]
Devices = Annotated[
    tuple[Device, ...],
    PlainValidator(values.devices),
    Field(
        description="PJSIP/<endpoint> with 1 to 80 letters, digits, _ . + or -, or up to 8 different ones"
        " joined by &,"
    ),
]
DialString = Annotated[
    str,
    PlainValidator(values.dialstring),
    Field(
        description="TECHNOLOGY/RESOURCE, or several joined by &, at most 400 printable ASCII characters"
        " without blanks, quotes and , ; $ \\,"
    ),
]
Hint = Annotated[
    str, PlainValidator(values.hint), Field(description="<number>@<context>, as 2000@from-internal,")
]

# Trunks

TrunkName = Annotated[str, PlainValidator(values.trunk_name)]
Endpoint = Annotated[
    str,
    PlainValidator(values.endpoint),
    Field(description="the name of a PJSIP endpoint, 1 to 80 letters, digits, _ . + or -,"),
]
SubscribeFrom = Annotated[
    str,
    PlainValidator(values.subscribe_from),
    Field(
        description="caller, or a sip: URI of at most 400 printable ASCII characters without blanks,"
        ' ", < and >,'
    ),
]
