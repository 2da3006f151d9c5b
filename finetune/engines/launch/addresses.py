"""Addresses of a launch: where machines meet, and by which interface they reach each other. Torch-free."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address

from finetune.errors import LaunchError


@dataclass(frozen=True)
class Address:
    """Host and port of machine 0."""

    host: str
    """A name or an IP address, an IPv6 one without brackets."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def listener(self) -> socket.socket:
        """A socket of machine 0 that listens there and nowhere else. Raises LaunchError where this machine
        can't."""
        family, kind, protocol, _, place = self._resolved()
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise LaunchError(
                f"--rendezvous {self} can't be used on this machine: {error.strerror}. Take another."
            ) from None
        return listener

    def interface(self) -> str | None:
        """The interface of this machine by which it reaches the address; None where none has the route's
        address."""
        import psutil

        family, _, _, _, place = self._resolved()
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(place)  # sends nothing: only the route is asked for
            except OSError:
                return None
            own = probe.getsockname()[0]
        for name, found in psutil.net_if_addrs().items():
            if any(entry.address.partition("%")[0] == own.partition("%")[0] for entry in found):
                return name
        return None

    def _resolved(self) -> tuple[int, int, int, str, tuple[object, ...]]:
        return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]


def parse_address(text: str) -> Address:
    """HOST:PORT. Raises LaunchError for anything else, and for a host that isn't known here."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    if not bare or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in bare and bare == host):
        raise LaunchError(
            f"--rendezvous: got {text!r}, expected HOST:PORT of machine 0, such as 10.0.0.1:29500 or "
            "[fd00::1]:29500."
        )
    try:
        found = ip_address(socket.getaddrinfo(bare, int(port))[0][4][0])
    except OSError as error:
        raise LaunchError(f"--rendezvous: the host {bare!r} is not known here: {error.strerror}.") from None
    if found.is_unspecified:
        raise LaunchError(
            f"--rendezvous: {bare} stands for every interface; give the one address at which machine 0 is "
            "reached."
        )
    if found.is_loopback and bare not in (str(found), "localhost"):
        raise LaunchError(
            f"--rendezvous: {bare} is {found} here, which no other machine reaches; give machine 0's own "
            "address."
        )
    return Address(bare, int(port))


def loopback() -> str | None:
    """The interface of this machine that nobody outside reaches."""
    import psutil

    return next(
        (
            name
            for name, found in psutil.net_if_addrs().items()
            if any(e.address == "127.0.0.1" for e in found)
        ),
        None,
    )
