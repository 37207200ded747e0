"""The sections of the file: which keys there are, what each allows, its default, and what a fault says of it.

`File` at the end is the whole.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from fastagi.completion import model
from fastagi.completion.model import Device
from fastagi.config import values
from fastagi.sip.trunk import Address

STORE = Path("/var/lib/fastagi/fastagi.db")
SOCKET = "fastagi.sock"
"""The control socket's name beside the store."""

_BUILT_IN = model.Settings()
_LIMITS = model.Limits()

# A field's description is the end of its sentence, "... is allowed"; bounds are added from the field itself.
_Seconds = Annotated[
    float, BeforeValidator(values.decimal), Field(allow_inf_nan=False, description="a number of seconds")
]
_Days = Annotated[
    float, BeforeValidator(values.decimal), Field(allow_inf_nan=False, description="a number of days")
]
_Count = Annotated[int, BeforeValidator(values.decimal), Field(description="a whole number")]
_Timer = Annotated[_Seconds, Field(ge=1, le=604_800)]
_Few = Annotated[_Count, Field(ge=1, le=10_000)]
_Policy = Annotated[
    Literal["generic", "never"], BeforeValidator(values.text), Field(description="generic or never")
]
_CALLER_ID_NAME = 'a text of at most 80 printable characters without ", <, > and \\'
_Path = Annotated[Path, PlainValidator(values.path), Field(description="an absolute path")]
_Networks = Annotated[
    list[Annotated[IPv4Network | IPv6Network, PlainValidator(values.network)]],
    Field(description="a list of addresses and of networks (10.0.0.0/8: no bit set beyond the length)"),
]
_ADDRESS = (
    "the IP address of one machine and a port from 1 to 65535, as 192.0.2.10:5060 or '[2001:db8::10]:5060',"
)
_Place = Annotated[Address | None, PlainValidator(values.address), Field(description=_ADDRESS)]
_YesOrNo = Annotated[bool, PlainValidator(values.yes_or_no), Field(description="yes or no")]


def _or_nothing(value: object) -> object:
    """``defaults:`` with nothing, or only comments, under it is an empty section."""
    return {} if value is None else value


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        return _or_nothing(value)


class Fastagi(Section):
    listen: Annotated[
        Address,
        PlainValidator(values.listen),
        Field(description="an IP address and a port from 1 to 65535, as 127.0.0.1:4573 or '[::1]:4573',"),
    ] = Address("127.0.0.1", 4573)
    allow: Annotated[_Networks, Field(min_length=1)] = [ip_network("127.0.0.0/8"), ip_network("::1")]
    control: Annotated[Path | None, PlainValidator(values.path), Field(description="an absolute path")] = None


class Ami(Section):
    host: Annotated[
        str,
        PlainValidator(values.host),
        Field(description="an IP address or a host name, at most 253 letters, digits, - . and :,"),
    ] = "127.0.0.1"
    port: Annotated[_Count, Field(ge=1, le=65535)] = 5038
    username: Annotated[
        str, PlainValidator(values.username), Field(description="1 to 80 letters, digits, _ . or -,")
    ]
    secret_file: _Path
    tls: _YesOrNo = False
    ca: Annotated[Path | None, PlainValidator(values.path), Field(description="an absolute path")] = None


class Asterisk(Section):
    spool: _Path = Path("/var/spool/asterisk/outgoing")
    temp: _Path = Path("/var/spool/asterisk/tmp")
    recall: Annotated[
        Literal["callfile", "originate"],
        BeforeValidator(values.text),
        Field(description="callfile or originate"),
    ] = "callfile"
    ami: Annotated[Ami | None, BeforeValidator(_or_nothing)] = None


_DevState = Annotated[
    Literal[
        "UNKNOWN", "NOT_INUSE", "INUSE", "BUSY", "INVALID", "UNAVAILABLE", "RINGING", "RINGINUSE", "ONHOLD"
    ],
    BeforeValidator(values.text),
    Field(description="UNKNOWN, NOT_INUSE, INUSE, BUSY, INVALID, UNAVAILABLE, RINGING, RINGINUSE or ONHOLD"),
]


class Settings(Section):
    cc_offer_timer: _Timer = _BUILT_IN.cc_offer_timer
    cc_recall_timer: Annotated[_Seconds, Field(ge=1, le=600)] = _BUILT_IN.cc_recall_timer
    cc_max_agents: _Few = _BUILT_IN.cc_max_agents
    cc_agent_policy: _Policy = "generic"
    cc_retry_timer: Annotated[_Seconds, Field(ge=1, le=86_400)] = _BUILT_IN.cc_retry_timer
    cc_max_recalls: Annotated[_Count, Field(ge=1, le=100)] = _BUILT_IN.cc_max_recalls
    cc_max_monitors: _Few = _BUILT_IN.cc_max_monitors
    cc_monitor_policy: _Policy = "generic"
    cc_guard_timer: Annotated[_Seconds, Field(ge=0, le=3600)] = _BUILT_IN.cc_guard_timer
    poll_interval: Annotated[_Seconds, Field(ge=0.05, le=60)] = _BUILT_IN.poll_interval
    ccbs_available_timer: _Timer = _BUILT_IN.ccbs_available_timer
    ccnr_available_timer: _Timer = _BUILT_IN.ccnr_available_timer
    monitor: Annotated[
        Literal["device", "hint"], BeforeValidator(values.text), Field(description="device or hint")
    ] = "device"
    cc_offer_digit: Annotated[
        str, PlainValidator(values.offer_digit), Field(description="off, or one of 0-9 * #,")
    ] = _BUILT_IN.cc_offer_digit
    cc_offer_repeat: Annotated[_Count, Field(ge=1, le=10)] = _BUILT_IN.cc_offer_repeat
    cc_offer_wait: Annotated[_Seconds, Field(ge=1, le=30)] = _BUILT_IN.cc_offer_wait
    cc_recall_prefix: Annotated[str, PlainValidator(values.name), Field(description=_CALLER_ID_NAME)] = ""
    cc_recall_alert_info: Annotated[
        str,
        PlainValidator(values.alert_info),
        Field(description="a text of at most 200 printable ASCII characters without , $ \" ' ` \\ ( and ),"),
    ] = ""
    cc_recall_announce: Annotated[
        Literal["off", "beep", "number"],
        BeforeValidator(values.text),
        Field(description="off, beep or number"),
    ] = "off"
    cc_available_devstate: _DevState = "NOT_INUSE"
    cc_offered_devstate: _DevState = "NOT_INUSE"
    cc_caller_requested_devstate: _DevState = "NOT_INUSE"
    cc_active_devstate: _DevState = "INUSE"
    cc_callee_ready_devstate: _DevState = "INUSE"
    cc_caller_busy_devstate: _DevState = "ONHOLD"
    cc_recalling_devstate: _DevState = "RINGING"
    cc_complete_devstate: _DevState = "NOT_INUSE"
    cc_failed_devstate: _DevState = "NOT_INUSE"


class Defaults(Settings):
    cc_max_requests: Annotated[_Count, Field(ge=1, le=2000)] = _LIMITS.cc_max_requests
    cc_max_offers: Annotated[_Count, Field(ge=1, le=10_000_000)] = _LIMITS.cc_max_offers
    history_days: Annotated[_Days, Field(ge=1, le=36_500)] = _LIMITS.history_days


class Entry(Settings):
    name: Annotated[
        str,
        PlainValidator(values.name),
        Field(description=_CALLER_ID_NAME),
    ] = ""
    device: Annotated[
        tuple[Device, ...],
        PlainValidator(values.devices),
        Field(
            description="PJSIP/<endpoint> with 1 to 80 letters, digits, _ . + or -, or up to 8 different ones"
            " joined by &,"
        ),
    ] = ()
    dialstring: Annotated[
        str,
        PlainValidator(values.dialstring),
        Field(
            description="TECHNOLOGY/RESOURCE, or several joined by &, at most 400 printable ASCII characters"
            " without blanks, quotes and , ; $ \\,"
        ),
    ] = ""
    hint: Annotated[
        str,
        PlainValidator(values.hint),
        Field(description="<number>@<context>, as 2000@from-internal,"),
    ] = ""


class Trunk(Section):
    listen: Annotated[
        tuple[str, Address],
        PlainValidator(values.trunk_listen),
        Field(
            description="udp: or tcp:, an IP address and a port from 1 to 65535, as udp:192.0.2.1:5070 or"
            " 'tcp:[2001:db8::1]:5070',"
        ),
    ]
    peer: Annotated[
        list[Annotated[Address, PlainValidator(values.address)]],
        Field(min_length=1, max_length=8, description=f"a list of 1 to 8, each {_ADDRESS}"),
    ]
    asterisk: _Place = None
    endpoint: Annotated[
        str,
        PlainValidator(values.endpoint),
        Field(description="the name of a PJSIP endpoint, 1 to 80 letters, digits, _ . + or -,"),
    ] = ""
    public: _Place = None
    allow: _Networks = []
    subscribe_from: Annotated[
        str,
        PlainValidator(values.subscribe_from),
        Field(
            description="caller, or a sip: URI of at most 400 printable ASCII characters without blanks,"
            ' ", < and >,'
        ),
    ] = "caller"
    in_path: _YesOrNo = True
    call_info: _YesOrNo = True
    retention: _YesOrNo = True
    cc_recall_timer: Annotated[_Seconds, Field(ge=10, le=60)] = 20


def asterisk_beside(listen: Address | None) -> Address:
    """The default: on this machine, where it sends to ``listen`` from."""
    if listen and listen.host not in values.WILDCARDS:
        return Address(listen.host, 5060)
    return Address("::1" if listen and values.version(listen) == 6 else "127.0.0.1", 5060)


class File(Section):
    fastagi: Fastagi = Fastagi()
    asterisk: Asterisk = Asterisk()
    store: _Path = STORE
    defaults: Defaults = Defaults()
    extensions: Annotated[
        dict[Annotated[str, PlainValidator(values.key)], Entry], BeforeValidator(_or_nothing)
    ] = {}
    trunks: Annotated[
        dict[Annotated[str, PlainValidator(values.trunk_name)], Trunk], BeforeValidator(_or_nothing)
    ] = {}
