"""Pages of lists: all of them together are the list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.pagination import page_of
from gateway.jobs.request_validation import Refused
from schemas.openai_models import ListItem, ListPage


@given(st.integers(0, 30), st.integers(1, 12))
def test_pages_one_after_another_are_the_whole_list(num, limit):
    things = [ListItem(id=str(number)) for number in range(num)]
    seen, after = [], None
    while True:
        page = ListPage[ListItem].of(*page_of(things, after, limit))
        seen += page.data
        assert len(page.data) <= limit
        after = page.last_id
        if not page.has_more:
            break
    assert seen == things


def test_an_empty_page_begins_and_ends_with_nothing():
    page = ListPage[ListItem].of(*page_of([], None, 5))
    assert (page.first_id, page.last_id, page.has_more) == (None, None, False)


def test_an_item_that_is_not_there_is_no_beginning():
    with pytest.raises(Refused) as refusal:
        page_of([ListItem(id="a")], "b", 5)
    assert (refusal.value.field, refusal.value.value) == ("after", "b")
