"""Taking a port of this machine, by an address of either family or a name."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. `::` is every address, those of IPv4 too. Raises OSError where it cannot be had."""
    is_ipv6 = ":" in host
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
