"""A FastAGI server as a library.

A script is a coroutine, and the variables that it returns are the last ones set::

    from fastagi.agi import serve

    async def hello(session):
        await session.answer()
        who = await session.get_variable("CALLERID(name)")
        await session.verbose(f"Hello {who}")
        return {"GREETED": "1"}

    serve({"hello": hello})
"""

from fastagi.agi.commands import Commands, deadline
from fastagi.agi.server import Counters, Script, Server, Session, listen, serve
from fastagi.agi.wire import Call, Reply, WireError

__all__ = [
    "Call",
    "Commands",
    "Counters",
    "Reply",
    "Script",
    "Server",
    "Session",
    "WireError",
    "deadline",
    "listen",
    "serve",
]
