import base64
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.webhooks.delivery import (
    RETRY_DELAYS_S,
    ForbiddenAddress,
    check_addresses,
    checked_url,
    owners_secret,
    retry_delay_s,
    signed_headers,
)


def test_a_signature_is_that_of_the_standards_own_example():
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_every_owner_has_a_secret_of_their_own_of_256_bits():
    secrets = {owners_secret(master, owner) for master in ("m", "n") for owner in ("alice", "bob")}
    assert len(secrets) == 4
    assert {len(base64.b64decode(one.removeprefix("whsec_"))) for one in secrets} == {32}


@pytest.mark.parametrize(
    ("url", "allow_http"),
    [("https://example.org/hook?x=1", False), ("https://example.org:8443", False), ("http://example.org", True)],
)
def test_addresses_of_web_servers_are_accepted(url, allow_http):
    checked_url(url, allow_http=allow_http)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "ftp://example.org",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "https://user:word@example.org",
        "https://user@example.org",
        "https://example.org:0",
        "https://example.org:99999",
        "https://[::1",
        "example.org",
        "//example.org",
        "",
        "https://a..b/",
        f"https://{'a' * 64}.example/",
        "https://example.org/\x00",
        "https://example.org\x00/",
        "https://public.example\\@127.0.0.1/",
        "https://\uff11\uff12\uff17.0.0.1/",
    ],
)
def test_anything_else_is_refused(url):
    with pytest.raises(ForbiddenAddress):
        checked_url(url, allow_http=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::a9fe:a9fe",
        "2001:0:7f00:1::1",
        "fec0::1",
        "2001:db8::1",
        "198.18.0.1",
        "192.0.2.1",
        "240.0.0.1",
    ],
)
def test_private_link_local_and_disguised_addresses_are_refused_even_beside_a_public_one(address):
    for addresses in ([address], ["93.184.215.14", address], [address, "93.184.215.14"]):
        with pytest.raises(ForbiddenAddress):
            check_addresses("example.org", addresses)


def test_the_address_to_connect_to_is_one_that_was_checked():
    assert (
        check_addresses("example.org", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]) == "93.184.215.14"
    )
    with pytest.raises(ForbiddenAddress):
        check_addresses("example.org", [])


def test_tries_are_ever_further_apart_and_end():
    delays = [retry_delay_s(tries) for tries in range(1, len(RETRY_DELAYS_S) + 2)]
    assert delays == [*RETRY_DELAYS_S, None]
    assert sorted(RETRY_DELAYS_S) == list(RETRY_DELAYS_S)


def test_a_host_is_read_once_and_in_ascii():
    assert checked_url("https://b\u00fccher.example:8443/x", allow_http=False).netloc == b"xn--bcher-kva.example:8443"


@given(
    st.text() | st.text().map(lambda rest: f"https://{rest}") | st.text().map(lambda path: f"https://a.example/{path}")
)
def test_whatever_an_address_is_it_is_read_or_refused(url):
    try:
        parsed = checked_url(url, allow_http=False)
    except ForbiddenAddress:
        return
    assert parsed.scheme == "https"
    assert parsed.raw_host.decode("ascii").encode("idna")


@given(st.ip_addresses())
def test_only_one_hosts_own_public_address_is_ever_connected_to(address):
    try:
        chosen = ip_address(check_addresses("example.org", [str(address)]))
    except ForbiddenAddress:
        return
    assert chosen.is_global
    assert not chosen.is_multicast
