"""Listening on a port, by an IPv4 or IPv6 address or a host name."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. `::` means every address, those of IPv4 too. Raises OSError where it cannot be had."""
    is_ipv6 = ":" in host
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
