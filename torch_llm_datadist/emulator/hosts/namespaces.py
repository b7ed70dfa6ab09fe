"""Namespaces, each with one TUN interface: what the kernel is asked for to make a host."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass

_CLONE_NEWUSER = 0x10000000  # linux/sched.h; os.unshare is there from Python 3.12 on
_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8916, 0x891C, 0x8922
_IFF_UP = 1
_NAME_BYTES = 16

LARGE_PACKETS = 65000  # an MTU: few and large packets, as offloads make them on a real interface
_INTERFACE = "lan0"


@dataclass(frozen=True)
class Namespace:
    """Files of this process: the network namespace, the mounts that belong to it, and the packets of its
    interface, in and out.
    """

    file: int
    mounts: int
    packets: int


def enter_user_namespace() -> None:
    """Gives this process, which must have one thread, the right to make networks of its own."""
    user, group = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def make(network: ipaddress.IPv4Network, address: ipaddress.IPv4Address, mtu: int) -> Namespace:
    """Moves this process into a new network namespace with one interface of that address."""
    _unshare(_CLONE_NEWNET)
    # Some machines pace loopback by default; all hosts behave alike.
    _write("/proc/sys/net/ipv4/tcp_congestion_control", "reno")
    packets = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(packets, _TUNSETIFF, struct.pack("16sH22x", _INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        _set_address(asker, _SIOCSIFADDR, address)
        _set_address(asker, _SIOCSIFNETMASK, network.netmask)
        fcntl.ioctl(asker, _SIOCSIFMTU, struct.pack("16si20x", _INTERFACE.encode(), mtu))
        for interface in ("lo", _INTERFACE):
            _bring_up(asker, interface)
    _show_own_interfaces()
    file, mounts = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "mnt"))
    return Namespace(file, mounts, packets)


def _show_own_interfaces() -> None:
    """Libraries look for interfaces in /sys, which shows those of the namespace that mounted it. Where that
    is not allowed /sys stays the machine's.
    """
    _unshare(_CLONE_NEWNS)
    ctypes.CDLL(None).mount(b"sysfs", b"/sys", b"sysfs", 0, None)


def _set_address(asker: socket.socket, request: int, address: ipaddress.IPv4Address) -> None:
    family_and_port = struct.pack("HH", socket.AF_INET, 0)
    fcntl.ioctl(
        asker, request, struct.pack("16s4s4s16x", _INTERFACE.encode(), family_and_port, address.packed)
    )


def _bring_up(asker: socket.socket, interface: str) -> None:
    answer = fcntl.ioctl(asker, _SIOCGIFFLAGS, struct.pack("16sH22x", interface.encode(), 0))
    (flags,) = struct.unpack_from("H", answer, _NAME_BYTES)
    fcntl.ioctl(asker, _SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), flags | _IFF_UP))


def _unshare(what: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(what) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"this kernel does not let a user make namespaces: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
