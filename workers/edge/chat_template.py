"""Renders a conversation with the GGUF file's own chat template, in Jinja's sandbox.

Knows no tokens. A model without a template (a base model) gets the bare texts, one paragraph each.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.requests import Message


class TemplateRefused(Exception):
    """The model's template does not accept the conversation, for example because of a system message."""


class ChatTemplate:
    """Renders conversations. Raises `jinja2.TemplateSyntaxError` if `source` is no valid template."""

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str) -> None:
        self._names = {"bos_token": bos_text, "eos_token": eos_text}
        self._template = None if source is None else _environment().from_string(source)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt up to the beginning of the assistant's turn. Raises `TemplateRefused`."""
        if self._template is None:
            return "\n\n".join(message.content for message in messages)
        turns = [message.model_dump() for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._names)
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"the model's chat template does not accept the conversation: {error}") from error


def _environment() -> jinja2.Environment:
    """The functions, filters and settings that templates rely on, as Hugging Face defines them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
