import math

import pytest
from pydantic import ValidationError

from schemas.plain import MAX_DEPTH
from schemas.requests import JobRequest, Message, Sampling

USER = {"role": "user", "content": "hello"}


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


#: One bad body a row: what is laid over a good one, and the field that the error must name.
BAD = [
    ({"prompt": 5}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": None}, "messages"),
    ({"prompt": ["hello"]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"messages": [USER]}, "messages"),
    ({"prompt": None, "messages": []}, "messages"),
    ({"prompt": None, "messages": "hello"}, "messages"),
    ({"prompt": None, "messages": [USER, {"role": "assistant", "content": "hi"}]}, "messages"),
    ({"prompt": None, "messages": [{"role": "nobody", "content": "hi"}]}, "messages.0.role"),
    ({"prompt": None, "messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
    ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0.content"),
    ({"prompt": None, "messages": [{**USER, "name": "me"}]}, "messages.0.name"),
    ({"prompt": None, "messages": [5]}, "messages.0"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 32_769}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": None}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": []}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 1_001}, "top_k"),
    ({"top_k": 0.5}, "top_k"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**31}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"stop": ""}, "stop.0"),
    ({"stop": ["x" * 257]}, "stop.0"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"repetition_penalty": 2.1}, "repetition_penalty"),
    ({"repetition_penalty": "x"}, "repetition_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"frequency_penalty": {}}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"presence_penalty": "x"}, "presence_penalty"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": -101}}, "logit_bias.5"),
    ({"logit_bias": {"word": 1}}, "logit_bias.word.[key]"),
    ({"logit_bias": {str(n): 0 for n in range(301)}}, "logit_bias"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]"),
    ({"logit_bias": {str(2**31): 1}}, f"logit_bias.{2**31}.[key]"),
    ({"logit_bias": {"5": math.nan}}, "logit_bias.5"),
    ({"logprobs": "perhaps"}, "logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": "all"}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"grammar": ""}, "grammar"),
    ({"grammar": "x" * 65_537}, "grammar"),
    ({"grammar": 5}, "grammar"),
    ({"json_schema": []}, "json_schema"),
    ({"json_schema": "{}"}, "json_schema"),
    ({"json_schema": {"maximum": 2**64}}, "json_schema"),
    ({"json_schema": {"minimum": -(10**400)}}, "json_schema"),
    ({"json_schema": {"maximum": math.inf}}, "json_schema"),
    ({"json_schema": {"const": "\ud800"}}, "json_schema"),
    ({"json_schema": nested(MAX_DEPTH + 1)}, "json_schema"),
    ({"json_schema": {"type": "string", "minLength": 10**9}}, "json_schema"),
    ({"json_schema": {"enum": ["x"] * 20_000}}, "json_schema"),
    ({"json_schema": {}, "grammar": "root ::= [a-z]"}, "json_schema"),
    ({"policy": ""}, "policy"),
    ({"policy": 5}, "policy"),
    ({"confidence": "high"}, "confidence"),
    ({"confidence": {"strategy": ""}}, "confidence.strategy"),
    ({"confidence": {"strategy": 5}}, "confidence.strategy"),
    ({"confidence": {"threshold": -0.1}}, "confidence.threshold"),
    ({"confidence": {"threshold": 1.1}}, "confidence.threshold"),
    ({"confidence": {"threshold": "x"}}, "confidence.threshold"),
    ({"confidence": {"weights": {}}}, "confidence.weights"),
    ({"confidence": {"weights": {"margin": -1}}}, "confidence.weights.margin"),
    ({"confidence": {"weights": {"margin": math.inf}}}, "confidence.weights.margin"),
    ({"confidence": {"weights": {"margin": "x"}}}, "confidence.weights.margin"),
    ({"confidence": {"weights": ["margin"]}}, "confidence.weights"),
    ({"confidence": {"pooling": "median"}}, "confidence.pooling"),
    ({"confidence": {"quantile": 0.0}}, "confidence.quantile"),
    ({"confidence": {"max_risk": 1.5}}, "confidence.max_risk"),
    ({"confidence": {"max_risk": 0.1, "threshold": 0.5}}, "confidence.max_risk"),
    ({"traffic_class": "a b"}, "traffic_class"),
    ({"traffic_class": ""}, "traffic_class"),
    ({"confidence": {"quantile": 1.0}}, "confidence.quantile"),
    ({"confidence": {"treshold": 0.5}}, "confidence.treshold"),
    ({"deadline_s": 0}, "deadline_s"),
    ({"deadline_s": -1}, "deadline_s"),
    ({"deadline_s": float("inf")}, "deadline_s"),
    ({"deadline_s": "soon"}, "deadline_s"),
    ({"webhook": ""}, "webhook"),
    ({"webhook": 5}, "webhook"),
    ({"webhook": "https://" + 2048 * "x"}, "webhook"),
    ({"acceptance": 0.8}, "acceptance"),
    ({"acceptance": {"mode": "roughly"}}, "acceptance.mode"),
    ({"acceptance": {"threshold": 1.1}}, "acceptance.threshold"),
    ({"acceptance": {"threshold": -0.1}}, "acceptance.threshold"),
    ({"acceptance": {"tolerance": 1}}, "acceptance.tolerance"),
    ({"max_token": 5}, "max_token"),
]


@pytest.mark.parametrize(("change", "field"), BAD, ids=lambda value: None if isinstance(value, dict) else value)
def test_bad_input_is_refused_and_its_field_named(change, field):
    with pytest.raises(ValidationError) as refusal:
        JobRequest.model_validate({"prompt": "hello", **change})
    named = {".".join(str(part) for part in error["loc"]) for error in refusal.value.errors()}
    assert named == {field}


def test_the_table_of_bad_input_knows_every_field():
    assert {field.split(".")[0] for _, field in BAD} >= set(JobRequest.model_fields)


def test_a_prompt_alone_is_enough_and_is_the_users():
    body = JobRequest(prompt="hello")
    assert body.conversation() == (Message(role="user", content="hello"),)
    assert body.sampling() == Sampling()
    assert body.sampling().greedy


def test_messages_are_taken_as_they_are():
    system = {"role": "system", "content": "be brief"}
    body = JobRequest.model_validate({"messages": [system, USER]})
    assert [message.role for message in body.conversation()] == ["system", "user"]


def test_a_lone_stop_string_is_one_of_many():
    assert JobRequest(prompt="hello", stop="END").stop == ("END",)


def test_everything_that_engines_need_gets_into_the_sampling():
    values = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 11,
        "stop": ("\n",),
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.2,
        "logit_bias": {5: -100.0},
        "logprobs": True,
        "top_logprobs": 2,
        "grammar": None,
        "json_schema": {"type": "object", "maximum": 2**64 - 1},
    }
    assert JobRequest(prompt="hello", **values).sampling().model_dump() == values
    assert set(values) == set(Sampling.model_fields)
