"""Log-probabilities that join to the answer's text: the bytes of their tokens in a row are the text in UTF-8.

Owns what is left out (the end-of-text token, the tokens of a stop string, half a character at the end, which the text
does not have either) and what is cut (a token of which a stop string begins in the middle). Pure; knows no vocabulary.
"""

import codecs
from collections.abc import Sequence

from schemas.results import TokenLogprob


class DoesNotJoin(Exception):
    """The text is not what the tokens' bytes begin with."""


def joined(entries: Sequence[TokenLogprob], text: str) -> tuple[TokenLogprob, ...]:
    """The entries with a part in the text, each with the bytes of it that stand there.

    `entries` are those of all tokens that were written, in order, with all of their bytes. Bytes that are no UTF-8
    count as the U+FFFD that a text has in their place. No entries stay none. Raises `DoesNotJoin`.
    """
    if not entries:
        return ()
    left = _num_bytes([bytes(entry.bytes) for entry in entries], text)
    standing = []
    for entry in entries:
        stands, left = entry.bytes[:left], left - min(left, len(entry.bytes))
        if len(stands) == len(entry.bytes) > 0:
            standing.append(entry)
        elif stands:
            part = {"bytes": stands, "token": bytes(stands).decode(errors="replace")}
            standing.append(entry.model_copy(update=part))
    return tuple(standing)


def _num_bytes(pieces: Sequence[bytes], text: str) -> int:
    """How many of the bytes, taken in a row, make the text."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    place, num_decoded, begun = 0, 0, b""
    for piece in pieces:
        if place == len(text):
            break
        new = decoder.decode(piece)
        fits = min(len(new), len(text) - place)
        if not text.startswith(new[:fits], place):
            break
        place += fits
        if fits < len(new):
            return num_decoded + _length(begun + piece, fits)
        num_decoded += len(begun) + len(piece)
        begun = decoder.getstate()[0]
        num_decoded -= len(begun)
    if place < len(text):
        raise DoesNotJoin(f"of an answer of {len(text)} characters {place} are what its tokens say")
    return num_decoded


def _length(raw: bytes, num_characters: int) -> int:
    """How many of the bytes make the first so many characters, of which there are enough."""
    length = 0
    while num_characters:
        try:
            good, bad = raw[length:].decode(), 0
        except UnicodeDecodeError as error:
            good, bad = raw[length : length + error.start].decode(), error.end - error.start
        taken = good[:num_characters]
        length += len(taken.encode())
        num_characters -= len(taken)
        if num_characters:
            length += bad
            num_characters -= 1
    return length
