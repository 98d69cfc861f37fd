"""What vLLM publishes about its cache, read from a publisher that is not vLLM; the messages are of vLLM's own types."""

import msgspec
import pytest
import zmq

from tests.polling import until

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]
#: What no version of vLLM sends, or not yet.
GARBAGE = [
    [b""],
    [b"", b"", b"", b""],
    [b"", b"\x00" * 8, b"\xc1"],
    [b"", b"\x00" * 8, b""],
    [b"", b"\x00" * 8, msgspec.msgpack.encode(["now", "no list"])],
    [b"", b"\x00" * 8, msgspec.msgpack.encode([1.0, [["BlockExploded", [1]]]])],
    [b"", b"\x00" * 8, msgspec.msgpack.encode([1.0, [["BlockRemoved", 5]]])],
]


@pytest.fixture
def publisher(tmp_path):
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.bind(f"ipc://{tmp_path}/kv")
    yield socket
    socket.close(linger=0)
    context.term()


@pytest.fixture
def reader(publisher, tmp_path):
    from workers.cloud.vllm_engine.kv_events import KvEventReader  # noqa: PLC0415 - imports vLLM, which takes long

    built = KvEventReader(f"ipc://{tmp_path}/kv")
    assert publisher.poll(5_000)  # it has subscribed
    publisher.recv()
    yield built
    built.close()


def stored(number: int, block_size: int = 2, **changes) -> list[bytes]:
    from vllm.distributed.kv_events import BlockStored, KVEventBatch  # noqa: PLC0415 - as above

    fields = {
        "block_hashes": [7],
        "parent_block_hash": None,
        "token_ids": [1, 2],
        "lora_id": None,
        "medium": None,
        "lora_name": None,
        "extra_keys": [("owner:alice",)],
    }
    event = BlockStored(block_size=block_size, **(fields | changes))
    return [b"", number.to_bytes(8, "big"), msgspec.msgpack.encode(KVEventBatch(ts=1.0, events=[event]))]


@pytest.mark.parametrize("frames", [*GARBAGE, None], ids=range(len(GARBAGE) + 1))
def test_what_cannot_be_read_voids_the_account_and_the_next_events_count(publisher, reader, frames):
    publisher.send_multipart(stored(0))
    until(lambda: reader.prefix_tokens((1, 2), "owner:alice") == 2, "the first block is held")
    losses = reader.losses
    publisher.send_multipart(stored(1, block_size=0) if frames is None else frames)
    until(lambda: reader.prefix_tokens((1, 2), "owner:alice") == 0, "nothing is believed held")
    assert reader.losses > losses
    publisher.send_multipart(stored(2))
    until(lambda: reader.prefix_tokens((1, 2), "owner:alice") == 2, "it is held again")


def test_blocks_are_their_salts_and_what_hangs_on_more_is_nobodys(publisher, reader):
    alices = stored(0, block_hashes=[7, 8], token_ids=[1, 2, 3, 4], extra_keys=[("owner:alice",), None])
    more = stored(1, parent_block_hash=8, block_hashes=[9], token_ids=[5, 6], extra_keys=None)
    bobs = stored(2, block_hashes=[17], extra_keys=[("owner:bob",)])
    with_adapter = stored(3, block_hashes=[27], lora_name="owner:carol", extra_keys=[("owner:carol",)])
    with_image = stored(4, block_hashes=[37], extra_keys=[(("an image", 0), "owner:dave")])
    unsalted = stored(5, block_hashes=[47], token_ids=[7, 8], extra_keys=None)
    for message in (alices, more, bobs, with_adapter, with_image, unsalted):
        publisher.send_multipart(message)
    until(lambda: reader.totals()[0] == 7, "all blocks are known")
    prompt = (1, 2, 3, 4, 5, 6)
    told = {name: reader.prefix_tokens(prompt, f"owner:{name}") for name in ("alice", "bob", "carol", "dave", "erin")}
    assert told == {"alice": 6, "bob": 2, "carol": 0, "dave": 0, "erin": 0}
    assert reader.prefix_tokens((7, 8), "owner:alice") == 0
