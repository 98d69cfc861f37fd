"""How a webhook is signed, which addresses it may go to, and when it is tried again. Pure.

Signatures are those of Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), for which receivers have libraries.
"""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import httpx

#: Seconds from each failed try to the next. After the last one the webhook is given up.
RETRY_DELAYS_S = (5, 30, 120, 600, 1800, 3600, 7200)
#: IPv6 addresses that stand for an IPv4 address (RFC 6052), which may be private.
NAT64 = IPv6Network("64:ff9b::/96")
#: The IPv6 addresses of single hosts on the internet (RFC 4291, 2.4). Python's `is_global` is true of others too:
#: `::127.0.0.1`, `fec0::1`, and translated private IPv4 addresses.
GLOBAL_UNICAST = IPv6Network("2000::/3")


class ForbiddenAddress(Exception):
    """A webhook may not go there."""


def owners_secret(master: str, owner: str) -> str:
    """The owner's signing secret, derived from the deployment's, so that none needs to be stored."""
    return "whsec_" + base64.b64encode(hmac.digest(master.encode(), owner.encode(), hashlib.sha256)).decode()


def signed_headers(secret: str, message_id: str, now_s: int, body: bytes) -> dict[str, str]:
    """Headers by which a receiver can check who sent the body, and when."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, f"{message_id}.{now_s}.".encode() + body, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(now_s), "webhook-signature": f"v1,{signature}"}


def checked_url(url: str, *, allow_http: bool) -> httpx.URL:
    """The URL as httpx reads it, with its host in ASCII. Raises `ForbiddenAddress` if it is not a web server's."""
    try:
        parsed = httpx.URL(url)
        parsed.raw_host.decode("ascii").encode("idna")  # as resolving it would
    except (httpx.InvalidURL, ValueError) as error:
        raise ForbiddenAddress(f"it is no URL: {error}") from error
    if parsed.scheme != "https" and not (allow_http and parsed.scheme == "http"):
        raise ForbiddenAddress("it must start with https://")
    if not parsed.host or parsed.port == 0 or (parsed.port or 0) >= 1 << 16:
        raise ForbiddenAddress("it names no host")
    if parsed.userinfo:
        raise ForbiddenAddress("it must hold no user name or password")
    return parsed


def check_addresses(host: str, addresses: Iterable[str]) -> str:
    """The address to connect to. Raises `ForbiddenAddress` unless all addresses of the host are public.

    The caller connects to this address, not to the name, which may resolve to another one a moment later.
    """
    found = [_plain(ipaddress.ip_address(address.partition("%")[0])) for address in addresses]
    if not found:
        raise ForbiddenAddress(f"{host} has no address")
    for address in found:
        if not _is_public(address):
            raise ForbiddenAddress(f"{host} is {address}, which is no public address")
    return str(found[0])


def retry_delay_s(num_tries: int) -> int | None:
    """Seconds until the next try after `num_tries`; None where it is given up."""
    return RETRY_DELAYS_S[num_tries - 1] if num_tries <= len(RETRY_DELAYS_S) else None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    in_range = isinstance(address, IPv4Address) or address in GLOBAL_UNICAST
    return in_range and address.is_global and not address.is_multicast


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does; else the same address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.sixtofour or address
    return address
