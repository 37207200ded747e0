"""The sections of the file: which keys there are, of which kind and in which bounds, and their defaults."""

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fastagi.config import kinds, values
from fastagi.config.kinds import Count, DeviceState, Few, Policy, Seconds, Timer
from fastagi.sip.trunk import Address

STORE = Path("/var/lib/fastagi/fastagi.db")
SOCKET = "fastagi.sock"
"""The control socket's name beside the store."""

_MODEL: Any = None
"""No default: what the file does not say, completion/model.py does, and the value here is not looked at."""


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
    listen: kinds.Listen = Address("127.0.0.1", 4573)
    allow: Annotated[kinds.Networks, Field(min_length=1)] = [ip_network("127.0.0.0/8"), ip_network("::1")]
    control: kinds.PathOrNone = None


class Ami(Section):
    host: kinds.Host = "127.0.0.1"
    port: kinds.Port = 5038
    username: kinds.Username
    secret_file: kinds.AbsolutePath
    tls: kinds.YesOrNo = False
    ca: kinds.PathOrNone = None


class Asterisk(Section):
    spool: kinds.AbsolutePath = Path("/var/spool/asterisk/outgoing")
    temp: kinds.AbsolutePath = Path("/var/spool/asterisk/tmp")
    recall: kinds.Recall = "callfile"
    ami: Annotated[Ami | None, BeforeValidator(_or_nothing)] = None


class Settings(Section):
    cc_offer_timer: Timer = _MODEL
    cc_recall_timer: Annotated[Seconds, Field(ge=1, le=600)] = _MODEL
    cc_max_agents: Few = _MODEL
    cc_agent_policy: Policy = _MODEL
    cc_retry_timer: Annotated[Seconds, Field(ge=1, le=86_400)] = _MODEL
    cc_max_recalls: Annotated[Count, Field(ge=1, le=100)] = _MODEL
    cc_max_monitors: Few = _MODEL
    cc_monitor_policy: Policy = _MODEL
    cc_guard_timer: Annotated[Seconds, Field(ge=0, le=3600)] = _MODEL
    poll_interval: Annotated[Seconds, Field(ge=0.05, le=60)] = _MODEL
    ccbs_available_timer: Timer = _MODEL
    ccnr_available_timer: Timer = _MODEL
    monitor: kinds.Monitor = _MODEL
    cc_offer_digit: kinds.OfferDigit = _MODEL
    cc_offer_repeat: Annotated[Count, Field(ge=1, le=10)] = _MODEL
    cc_offer_wait: Annotated[Seconds, Field(ge=1, le=30)] = _MODEL
    cc_recall_prefix: kinds.CallerIdName = _MODEL
    cc_recall_alert_info: kinds.AlertInfo = _MODEL
    cc_recall_announce: kinds.Announce = _MODEL
    cc_available_devstate: DeviceState = _MODEL
    cc_offered_devstate: DeviceState = _MODEL
    cc_caller_requested_devstate: DeviceState = _MODEL
    cc_active_devstate: DeviceState = _MODEL
    cc_callee_ready_devstate: DeviceState = _MODEL
    cc_caller_busy_devstate: DeviceState = _MODEL
    cc_recalling_devstate: DeviceState = _MODEL
    cc_complete_devstate: DeviceState = _MODEL
    cc_failed_devstate: DeviceState = _MODEL


class Defaults(Settings):
    cc_max_requests: Annotated[Count, Field(ge=1, le=2000)] = _MODEL
    cc_max_offers: Annotated[Count, Field(ge=1, le=10_000_000)] = _MODEL
    history_days: Annotated[kinds.Days, Field(ge=1, le=36_500)] = _MODEL


class Entry(Settings):
    name: kinds.CallerIdName = ""
    device: kinds.Devices = ()
    dialstring: kinds.DialString = ""
    hint: kinds.Hint = ""


class Trunk(Section):
    listen: kinds.TrunkListen
    peer: kinds.Peers
    asterisk: kinds.AddressOrNone = None
    endpoint: kinds.Endpoint = ""
    public: kinds.AddressOrNone = None
    allow: kinds.Networks = []
    subscribe_from: kinds.SubscribeFrom = "caller"
    in_path: kinds.YesOrNo = True
    call_info: kinds.YesOrNo = True
    retention: kinds.YesOrNo = True
    cc_recall_timer: Annotated[Seconds, Field(ge=10, le=60)] = 20


def asterisk_beside(listen: Address) -> Address:
    """The default of ``asterisk``: on this machine, where it sends to ``listen`` from."""
    if listen.host not in values.WILDCARDS:
        return Address(listen.host, 5060)
    return Address("::1" if values.version(listen) == 6 else "127.0.0.1", 5060)


class File(Section):
    fastagi: Fastagi = Fastagi()
    asterisk: Asterisk = Asterisk()
    store: kinds.AbsolutePath = STORE
    defaults: Defaults = Defaults()
    extensions: Annotated[dict[kinds.Key, Entry], BeforeValidator(_or_nothing)] = {}
    trunks: Annotated[dict[kinds.TrunkName, Trunk], BeforeValidator(_or_nothing)] = {}
