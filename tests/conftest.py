"""What every test stands on: the tiny profile, no network, its own home folder, no screen.

Libraries read these variables when they are imported, so they are set here, before pytest
imports any test module, and not in a fixture alone.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.update(
    COMET_PROFILE="tiny",
    COMET_HOME=tempfile.mkdtemp(prefix="comet-tests-"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
DATA = os.environ.get("COMET_DATA")
for name in ("COMET_DATA", "COMET_SEED", "COMET_STRICT"):
    os.environ.pop(name, None)

# Slow machines are no failure, and the same examples are drawn on each run.
settings.register_profile("comet", deadline=None, derandomize=True)
settings.load_profile("comet")


class NetworkBlocked(RuntimeError):
    """A test tried to reach the network.

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


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Let Python sockets reach loopback addresses and Unix sockets only."""
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket.socket, "sendto", guarded_sendto)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def comet_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty COMET_HOME for each test: what one test writes, the next does not see."""
    home = tmp_path_factory.mktemp("comet-home")
    monkeypatch.setenv("COMET_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that COMET_DATA named when pytest was called; without it the test is skipped."""
    if not DATA or not Path(DATA).is_dir():
        pytest.skip("needs the folder COMET_DATA")
    return Path(DATA)
