"""The families of error: ours, the peer's, the operator's; each message is one sentence for a person."""


class FastagiError(Exception):
    """The base of every error fastagi raises itself; ``str(error)`` is a sentence that can be shown."""


class Refused(FastagiError):
    """The rules say no; nothing has changed.

    ``reason`` is the word for programs (``CC_REQUEST_REASON`` and the like), the message the sentence.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class ConfigError(FastagiError):
    """The operator's file or machine is at fault; ``faults`` holds one sentence for each fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class StoreError(FastagiError):
    """The database cannot be used: unreadable, read-only, full, or written by a newer version."""
