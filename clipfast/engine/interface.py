"""The network interface that gloo takes, where a node's own name leads other nodes to none.

gloo listens at the address that the node's own name leads to. Where that is 127.0.1.1, as Debian's
installer leaves it, ranks on other nodes look for it on themselves: one of them fails, the others
wait for half an hour. NCCL looks for an interface by itself.
"""

import ipaddress
import os
import socket

VARIABLE = "GLOO_SOCKET_IFNAME"
_NOWHERE = "127.0.0.1"


def address_towards(address: str, port: int) -> str:
    """This node's own address on the way to another one. Nothing is sent.

    Args:
        address: of the other node, or its name.
        port: any.

    Returns:
        A loopback address where the other node is this one, or no way leads there.
    """
    try:
        family, kind, _, _, there = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError:
        return _NOWHERE


def choose(towards_first: str, towards_first_of_last: str) -> None:
    """Set GLOO_SOCKET_IFNAME where it is not set and gloo would listen where no other node comes.

    Args:
        towards_first: this rank's address on the way to rank 0.
        towards_first_of_last: the same of the last rank, which is on another node where there are
            several.
    """
    if os.environ.get(VARIABLE) or _own_name_leads_out():
        return
    own = towards_first
    if _is_loopback(own):
        # The node of rank 0, or the only one.
        own = address_towards(towards_first_of_last, 1)
    name = None if _is_loopback(own) else interface_of(own)
    if name is not None:
        os.environ[VARIABLE] = name


def interface_of(address: str) -> str | None:
    """The name of this node's interface that has an address; None where none has it."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if address in (each.address.partition("%")[0] for each in addresses):
            return str(name)
    return None


def _own_name_leads_out() -> bool:
    """Whether gloo finds an address by itself that is not a loopback one."""
    try:
        first = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0]
    except OSError:
        return False
    return not _is_loopback(str(first[4][0]))


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
