"""What the edge's benchmark relies on, whatever the model would say on this processor."""

import pytest

from experiments import edge_latency
from experiments.harness.edge import running_edge, submit, user_message
from experiments.waiting import outcome_of
from schemas.results import FinishReason

pytestmark = pytest.mark.e2e

#: Answered in some twenty tokens.
SHORT = user_message("Name three things made of copper.")


def test_a_writer_that_never_ends_its_text_writes_as_many_tokens_as_it_was_given(edge_model_path):
    endless = dict.fromkeys(edge_latency.end_of_text_tokens(edge_model_path), edge_latency.NEVER)
    assert endless
    with running_edge(edge_model_path, model={"threads": 2}) as engine:
        ends, goes_on = (
            outcome_of(submit(engine, SHORT, 96, logit_bias=bias), "a draft is written") for bias in ({}, endless)
        )
    assert ends.finish_reason is FinishReason.STOP
    assert (goes_on.finish_reason, len(goes_on.token_ids)) == (FinishReason.LENGTH, 96)


def test_the_stall_is_measured_to_its_end(edge_model_path):
    assert edge_latency.p99_gap_s(edge_model_path, 2, long_prompt=True) > 0
