"""What is open: offers and requests in memory, with every change since the last commit.

A change shows at once, but the service lets nobody look before it is saved; when saving fails,
`rollback` takes all of it back.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from fastagi.completion.model import OPEN, Number, Offer, Request
from fastagi.completion.ports import Changes, Kept, LogEntry


class Book:
    """Offers by caller and by call; open requests in the order of asking."""

    def __init__(self) -> None:
        self.offers: dict[int, Offer] = {}
        self.changes = Changes()
        self.kept: defaultdict[str, dict[str, Kept]] = defaultdict(dict)
        """What others keep, by kind and key."""
        self.touched: dict[Number, Request | None] = {}
        """Callers of whom something has changed, each with his latest request that has ended, if any."""
        self._requests: dict[int, Request] = {}
        self._by_caller: defaultdict[Number, list[Offer]] = defaultdict(list)
        self._by_call: dict[tuple[str, Number], Offer] = {}
        self._by_recall: dict[str, int] = {}
        self._in_order: list[Request] | None = None
        self._undo: list[Callable[[], object]] = []
        self.last_id = 0

    # Reading

    def requests(self) -> list[Request]:
        """The open requests, oldest first."""
        if self._in_order is None:
            self._in_order = sorted(self._requests.values(), key=lambda r: (r.asked_at, r.id))
        return self._in_order

    def request(self, id: int) -> Request | None:
        return self._requests.get(id)

    def of_recall(self, recall_id: str) -> Request | None:
        """The request whose attempt under way has this id."""
        id = self._by_recall.get(recall_id)
        return None if id is None else self._requests[id]

    def offers_of(self, caller: Number) -> list[Offer]:
        """His recorded calls, the latest last."""
        return self._by_caller.get(caller, [])

    def offer_of_call(self, uniqueid: str, callee: Number) -> Offer | None:
        return self._by_call.get((uniqueid, callee))

    # Changing

    def new_id(self) -> int:
        """Never given twice, also when what it was for is rolled back."""
        self.last_id += 1
        return self.last_id

    def add_offer(self, offer: Offer) -> None:
        self._add_offer(offer)
        self.changes.offers.append(offer)
        self._undo.append(lambda: self._drop_offer(offer))

    def forget_offer(self, offer: Offer) -> None:
        self._drop_offer(offer)
        self.changes.forgotten_offers.append(offer.id)
        self._undo.append(lambda: self._add_offer(offer))

    def replace_offer(self, old: Offer, new: Offer) -> None:
        """The same call, with another thing to say of it."""
        self._drop_offer(old)
        self._add_offer(new)
        self.changes.offers.append(new)
        self._undo += [lambda: self._add_offer(old), lambda: self._drop_offer(new)]

    def put(self, request: Request, entry: LogEntry) -> None:
        """The request as it is from now on; one that is over leaves the book."""
        old = self._requests.get(request.id)
        self._set(old, request)
        self.changes.requests[request.id] = request
        self.changes.log.append(entry)
        self._undo.append(lambda: self._set(request, old))

    def put_kept(self, kind: str, key: str, value: Kept | None) -> None:
        """A value of others as it is from now on; None: it is no longer."""
        old = self.kept[kind].get(key)
        self._set_kept(kind, key, value)
        self.changes.kept[kind, key] = value
        self._undo.append(lambda: self._set_kept(kind, key, old))

    def load(
        self,
        offers: Iterable[Offer],
        requests: Iterable[Request],
        last_id: int,
        kept: Mapping[tuple[str, str], Kept],
    ) -> None:
        """What the store remembers, at start."""
        for (kind, key), value in kept.items():
            self.kept[kind][key] = value
        for offer in offers:
            self._add_offer(offer)
        for request in requests:
            self._set(None, request)
        self.last_id = last_id

    def take_changes(self) -> Changes:
        """All changes since the last time; they can still be rolled back."""
        changes, self.changes = self.changes, Changes()
        return changes

    def keep(self) -> None:
        """What was changed is saved."""
        self._undo.clear()

    def rollback(self) -> None:
        """As it was at the last `keep`."""
        while self._undo:
            self._undo.pop()()
        self.changes = Changes()
        self.touched = dict.fromkeys(self.touched)  # and none of them has ended

    def _add_offer(self, offer: Offer) -> None:
        self.touched.setdefault(offer.caller, None)
        self.offers[offer.id] = offer
        own = self._by_caller[offer.caller]
        own.append(offer)
        if len(own) > 1 and own[-2].id > offer.id:  # one that comes back, from a rollback
            own.sort(key=lambda o: o.id)
        self._by_call[offer.uniqueid, offer.callee] = offer

    def _drop_offer(self, offer: Offer) -> None:
        self.offers.pop(offer.id, None)
        own = self._by_caller[offer.caller]
        own.remove(offer)
        if not own:
            del self._by_caller[offer.caller]
        if self._by_call.get((offer.uniqueid, offer.callee)) is offer:
            del self._by_call[offer.uniqueid, offer.callee]

    def _set(self, old: Request | None, new: Request | None) -> None:
        self._in_order = None
        if old is not None:
            self._requests.pop(old.id, None)
            self._by_recall.pop(old.recall_id, None)
            self.touched.setdefault(old.caller, None)
        if new is not None:
            self.touched[new.caller] = self.touched.get(new.caller) if new.state in OPEN else new
        if new is not None and new.state in OPEN:
            self._requests[new.id] = new
            if new.recall_id:
                self._by_recall[new.recall_id] = new.id

    def _set_kept(self, kind: str, key: str, value: Kept | None) -> None:
        if value is None:
            self.kept[kind].pop(key, None)
        else:
            self.kept[kind][key] = value
