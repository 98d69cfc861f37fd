"""Files of JSON, one document a line, as people have them."""

import codecs
from collections.abc import Iterator
from pathlib import Path

#: How a file begins that is in another encoding; Windows PowerShell's `>` writes the first.
OTHER_ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class OtherEncoding(Exception):
    """The file is not UTF-8, which JSON must be."""


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers from 1, without a byte order mark. Raises `OtherEncoding`.

    One line at a time is in memory.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                for mark, encoding in OTHER_ENCODINGS.items():
                    if line.startswith(mark):
                        raise OtherEncoding(f"{path} is {encoding}: save it as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901 - the same line, as all others are
            if line.strip():
                yield number, line.strip()
