"""The tables, and how an older file becomes this one (sqlite-utils migrations)."""

from sqlite_utils import Database, Migrations

migrations = Migrations("fastagi")


@migrations()
def tables(db: Database) -> None:
    party = {
        "caller": str,
        "caller_devices": str,
        "caller_context": str,
        "callee": str,
        "callee_devices": str,
        "service": str,
        "why": str,
    }
    db.table("offers").create(
        {"id": int, **party, "reason": str, "offered_at": float, "offer_ends": float, "uniqueid": str},
        pk="id",
    )
    db.table("requests").create(
        {
            "id": int,
            **party,
            "state": str,
            "asked_at": float,
            "service_ends": float,
            "suspended": int,
            "sign_needed": int,
            "retry_at": float,
            "recalls": int,
            "recall_id": str,
            "taken": int,
            "channel": str,
            "recall_ends": float,
            "ended_at": float,
            "reason": str,
        },
        pk="id",
    )
    db.table("requests").create_index(["ended_at"])
    db.table("log").create(
        {"id": int, "request": int, "at": float, "old": str, "new": str, "sentence": str},
        pk="id",
    )
    db.table("log").create_index(["request"])
    # The highest id ever given survives the rows it was given to.
    db.table("ids").insert({"name": "last", "value": 0}, pk="name")


@migrations()
def trunks(db: Database) -> None:
    for table, columns in {
        "offers": ("agent", "monitor", "call_in", "call_out"),
        "requests": ("agent", "monitor"),
    }.items():
        for column in columns:
            db.table(table).add_column(column, str, not_null_default="")
    # Values of the SIP side, as JSON; saved together with the requests they belong to.
    db.table("kept").create({"kind": str, "key": str, "value": str}, pk=("kind", "key"))


@migrations()
def several_devices(db: Database) -> None:
    db.table("requests").add_column("idle_after", float, not_null_default=0.0)
    # Who waits for a sign of life, or had a turn that failed, is not rung for a phone that was idle all along.
    db.execute("UPDATE requests SET idle_after = asked_at WHERE service = 'CCNR' OR recalls > 0")
