"""Log-probabilities that match the answer's text: the bytes of their tokens, concatenated, are the text in UTF-8.

Drops tokens that are not in the text (end of text, stop strings, an incomplete character at the end), and cuts a token
in which a stop string begins. Pure; knows no vocabulary.
"""

import codecs
from collections.abc import Sequence

from schemas.results import TokenLogprob


class DoesNotJoin(Exception):
    """The tokens' bytes do not begin with the text."""


def joined(entries: Sequence[TokenLogprob], text: str) -> tuple[TokenLogprob, ...]:
    """The entries whose tokens are part of the text, each with the bytes that are in the text.

    `entries`: those of all generated tokens, in order, with all of their bytes. Invalid UTF-8 matches the U+FFFD that
    the text has in its place. Raises `DoesNotJoin`, but not for an empty list.
    """
    if not entries:
        return ()
    num_left = _num_bytes([bytes(entry.bytes) for entry in entries], text)
    kept = []
    for entry in entries:
        part, num_left = entry.bytes[:num_left], num_left - min(num_left, len(entry.bytes))
        if len(part) == len(entry.bytes) > 0:
            kept.append(entry)
        elif part:
            kept.append(entry.model_copy(update={"bytes": part, "token": bytes(part).decode(errors="replace")}))
    return tuple(kept)


def _num_bytes(pieces: Sequence[bytes], text: str) -> int:
    """How many bytes of the concatenated pieces make up the text."""
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
        raise DoesNotJoin(f"only {place} of the answer's {len(text)} characters match its tokens")
    return num_decoded


def _length(raw: bytes, num_characters: int) -> int:
    """How many of the bytes make up the first `num_characters` characters, all of which must be there."""
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
