"""What a webhook says, how it is signed, where it may go, and when it is tried again. Pure.

Signatures are those of Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), so that receivers have a library.
"""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import httpx

#: Seconds after each failed try until the next. What is not delivered then is given up.
RETRY_DELAYS_S = (5, 30, 120, 600, 1800, 3600, 7200)
#: IPv6 addresses that mean an IPv4 address (RFC 6052), which may be a private one.
NAT64 = IPv6Network("64:ff9b::/96")
#: All IPv6 addresses that are one host's on the internet (RFC 4291, 2.4). Python calls others global as well:
#: `::127.0.0.1`, `fec0::1`, and what translators make of private IPv4 addresses.
GLOBAL_UNICAST = IPv6Network("2000::/3")


class ForbiddenAddress(Exception):
    """A webhook may not go there."""


def owners_secret(master: str, owner: str) -> str:
    """The owner's signing secret, from the deployment's one secret: nothing has to be stored."""
    return "whsec_" + base64.b64encode(hmac.digest(master.encode(), owner.encode(), hashlib.sha256)).decode()


def signed_headers(secret: str, message_id: str, now_s: int, body: bytes) -> dict[str, str]:
    """The headers that let a receiver check who sent the body, and when."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, f"{message_id}.{now_s}.".encode() + body, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(now_s), "webhook-signature": f"v1,{signature}"}


def checked_url(url: str, *, allow_http: bool) -> httpx.URL:
    """The address as httpx reads it, its host in ASCII. Raises `ForbiddenAddress` for what is no safe web server's."""
    try:
        parsed = httpx.URL(url)
        parsed.raw_host.decode("ascii").encode("idna")  # what resolving does to it
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
    """The address to connect to. Raises `ForbiddenAddress` unless every one that the host has is a public one.

    Checked after resolution, and connected to as it was checked: a name may resolve to something else a moment later.
    """
    found = [_plain(ipaddress.ip_address(address.partition("%")[0])) for address in addresses]
    if not found:
        raise ForbiddenAddress(f"{host} has no address")
    for address in found:
        if not _is_public(address):
            raise ForbiddenAddress(f"{host} is {address}, which is no public address")
    return str(found[0])


def retry_delay_s(num_tries: int) -> int | None:
    """Seconds until the next try after so many; None where it is given up."""
    return RETRY_DELAYS_S[num_tries - 1] if num_tries <= len(RETRY_DELAYS_S) else None


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    in_range = isinstance(address, IPv4Address) or address in GLOBAL_UNICAST
    return in_range and address.is_global and not address.is_multicast


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.sixtofour or address
    return address
