"""Let Python sockets reach this machine only: ``block()``."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any


class NetworkBlocked(RuntimeError):
    """Somebody tried to reach the network.

    Not an OSError: code that falls back when it is offline would swallow that silently.
    """


def is_local(host: Any) -> bool:
    """Whether `host` (a name, an address or None) is this machine itself."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host: Any) -> None:
    if not is_local(host):
        raise NetworkBlocked(
            f"a test tried to reach {host!r}: tests use no network, only this machine "
            "(give the code a local folder, or replace the call in the test)"
        )


def _host_of(address: Any) -> Any:
    """The host in a socket address; None for Unix sockets, whose address is a path."""
    return address[0] if isinstance(address, tuple) else None


def block() -> None:
    """From now on only loopback addresses and Unix sockets can be reached from this process."""
    connect, connect_ex, sendto = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.socket.sendto,
    )
    getaddrinfo = socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse(_host_of(address))
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse(_host_of(address))
        return connect_ex(self, address)

    def guarded_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        _refuse(_host_of(rest[-1]))
        return sendto(self, data, *rest)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(host)
        return getaddrinfo(host, *args, **kwargs)

    new: Any = socket.socket
    new.connect, new.connect_ex, new.sendto = guarded_connect, guarded_connect_ex, guarded_sendto
    socket.getaddrinfo = guarded_getaddrinfo
