"""Pages of lists, as OpenAI's API has them: from the item after a given one on. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gateway.jobs.request_validation import Refused


class Item(Protocol):
    """What a list holds."""

    @property
    def id(self) -> str:
        """What `after` names it by."""


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Page(Generic[ItemT]):
    """Some of a list."""

    data: tuple[ItemT, ...]
    has_more: bool

    @property
    def first_id(self) -> str | None:
        """None where the page is empty."""
        return self.data[0].id if self.data else None

    @property
    def last_id(self) -> str | None:
        """None where the page is empty. The next page is the one after it."""
        return self.data[-1].id if self.data else None


def page_of(items: Sequence[ItemT], after: str | None, limit: int) -> Page[ItemT]:
    """Up to `limit` items, from the one after `after` on. Raises `Refused` where no item has that id."""
    start = 0
    if after is not None:
        start = next((place + 1 for place, item in enumerate(items) if item.id == after), 0)
        if not start:
            raise unknown_after(after)
    return Page(tuple(items[start : start + limit]), start + limit < len(items))


def unknown_after(after: str) -> Refused:
    """What to raise where the item before a page is not there: the first page would have a reader begin again."""
    return Refused("after", after, "the list holds nothing with this id")
