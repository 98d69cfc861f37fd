import pytest

from workers.cloud.token_bytes import BYTE_OF_CHARACTER, Spelling

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
GEMMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("decoder", "token", "expected"),
    [
        (BYTE_LEVEL, "Ġthe", b" the"),
        (BYTE_LEVEL, "Ċ", b"\n"),
        (BYTE_LEVEL, "Ã©", "é".encode()),
        # Two parts of 🙂, as SmolLM2 has it.
        (BYTE_LEVEL, "ðŁ", b"\xf0\x9f"),
        (BYTE_LEVEL, "ĻĤ", b"\x99\x82"),
        (BYTE_LEVEL, "<0x41>", b"<0x41>"),
        # Added tokens are spelled as they are read.
        (BYTE_LEVEL, "<tool_call>", b"<tool_call>"),
        (BYTE_LEVEL, "<\uff5cthink\uff5c>", "<\uff5cthink\uff5c>".encode()),
        (BYTE_LEVEL, "a b", b"a b"),
        ({"type": "Sequence", "decoders": [BYTE_LEVEL]}, "Ġthe", b" the"),
        (GEMMA, "▁the", b" the"),
        (GEMMA, "▁▁▁", b"   "),
        (GEMMA, "<0xF0>", b"\xf0"),
        (GEMMA, "<0xf0>", b"\xf0"),
        (GEMMA, "<0x123>", b"<0x123>"),
        (GEMMA, "é", "é".encode()),
        (GEMMA, "Ġ", "Ġ".encode()),
        (METASPACE, "▁the", b" the"),
        (METASPACE, "<0xF0>", b"<0xF0>"),
        ({}, "the", b"the"),
        ({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}]}, "x", b"x"),
    ],
)
def test_the_bytes_of_a_token_as_its_vocabulary_spells_it(decoder, token, expected):
    assert Spelling.of_decoder(decoder).bytes_of(token) == expected


def test_byte_level_spellings_have_a_character_for_each_byte():
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    assert all(len(character) == 1 and character.isprintable() for character in BYTE_OF_CHARACTER)
