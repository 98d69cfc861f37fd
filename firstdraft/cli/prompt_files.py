"""Files of prompts: JSON, one document per line, as people have them."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.requests import JobRequest

#: How a file in another encoding begins; Windows PowerShell's `>` writes the first.
OTHER_ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class UnusableFile(Exception):
    """The file has no prompts that can be used; the message says where and why."""


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1, without a byte order mark. Raises `UnusableFile`.

    Only one line at a time is in memory.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                for mark, encoding in OTHER_ENCODINGS.items():
                    if line.startswith(mark):
                        raise UnusableFile(f"{path} is {encoding}: save it as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901 - the same line
            if line.strip():
                yield number, line.strip()


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The request bodies in a file, each checked. Raises `UnusableFile`, which names the line."""
    bodies: list[dict[str, Any]] = []
    for number, line in json_lines(path):
        try:
            body = json.loads(line)
            JobRequest.model_validate(body)
        except ValueError as error:  # no JSON, no UTF-8, or no request
            raise UnusableFile(f"{path}, line {number}: {error}") from error
        bodies.append(body)
    if not bodies:
        raise UnusableFile(f"{path} holds no prompt")
    return bodies
