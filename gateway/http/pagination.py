"""Pages of lists that are in memory, as OpenAI's API has them. Pure."""

from collections.abc import Sequence

from gateway.jobs.request_validation import Refused
from schemas.openai_models import ItemT


def page_of(items: Sequence[ItemT], after: str | None, limit: int) -> tuple[Sequence[ItemT], bool]:
    """Up to `limit` items, beginning after the one whose id is `after`, and whether there are more.

    Raises `Refused` where no item has that id.
    """
    start = 0
    if after is not None:
        start = next((index + 1 for index, item in enumerate(items) if item.id == after), 0)
        if not start:
            raise unknown_after(after)
    return items[start : start + limit], start + limit < len(items)


def unknown_after(after: str) -> Refused:
    """The error for an `after` that is not in the list. The first page instead would make a reader begin again."""
    return Refused("after", after, "the list holds nothing with this id")
