"""Files of prompts with what is expected of their answers: JSON, one document per line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstdraft.cli.prompt_files import UnusableFile, json_lines
from schemas.requests import JobRequest


@dataclass(frozen=True)
class LabelledPrompt:
    """One line."""

    #: From 1.
    number: int
    #: A job's body.
    body: Mapping[str, Any]
    expected: Any = None
    checker: str | None = None
    traffic_class: str | None = None

    @property
    def text(self) -> str:
        """The conversation as a person would read it."""
        conversation = JobRequest.model_validate(dict(self.body)).conversation()
        return "\n".join(message.content for message in conversation)


def read_labelled(path: Path) -> list[LabelledPrompt]:
    """The file's lines, each checked. Raises `UnusableFile`, which names the line."""
    found = []
    for number, line in json_lines(path):
        try:
            document = json.loads(line)
            if not isinstance(document, dict):
                raise ValueError("a line is a JSON object")  # noqa: TRY004, TRY301 - as for the other faults of a line
            expected, checker = document.pop("expected", None), document.pop("checker", None)
            if checker is not None and expected is None:
                raise ValueError("checker needs expected")  # noqa: TRY301 - the same
            body = JobRequest.model_validate(document)
        except ValueError as error:  # no JSON, no UTF-8, or no request
            raise UnusableFile(f"{path}, line {number}: {error}") from error
        found.append(LabelledPrompt(number, document, expected, checker, body.traffic_class))
    if not found:
        raise UnusableFile(f"{path} holds no prompt")
    return found
