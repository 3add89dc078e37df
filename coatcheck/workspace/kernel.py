"""What Python's library does not offer of Linux: namespaces, mounts, privileges, Landlock. System calls by `ctypes`.

Owns the calls and their numbers; what is to be confined, and how far, is decided by `isolation` and `launcher`. Not
`unshare(1)`: a program in the namespaces must arrange the mounts and give up its privileges anyway, and with it there
would be two tools to agree. Every function raises `OSError` when the kernel refuses; nothing is tried a second time.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Final

# --- system calls -------------------------------------------------------------------------------------------------
# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>. The numbers above 423 are the same on every
# architecture.
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_SYS_MOUNT_SETATTR: Final = 442  # Linux 5.12
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
MOUNT_READ_ONLY: Final = 1
MOUNT_NO_SUID: Final = 2
MOUNT_NO_DEVICES: Final = 4
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: int, what: str) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), what)


# --- this process -------------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent is gone."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def be_opaque() -> None:
    """Keep processes of the same user from reading or tracing this one; a program that it starts is not concerned."""
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def forbid_privileges() -> None:
    """Give up every capability, for this process and all that it starts, even as root.

    With `no_new_privs` a program that root starts keeps what root has left, and set-uid programs give nothing.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
    if not _holds_capabilities():
        return
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def _holds_capabilities() -> bool:
    header, data = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    _, low, _, _, high, _ = struct.unpack("6I", data.raw)
    return bool(low or high)


# --- namespaces ---------------------------------------------------------------------------------------------------


def enter_namespaces(*, network: bool) -> None:
    """Move into namespaces of our own; user and group stay the same by name. The next child is process 1 there.

    Args:
        network: Whether the network stays.
    """
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    _check(_libc.unshare(flags if network else flags | CLONE_NEWNET), "unshare")
    # Without `deny` an unprivileged user may not map a group.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        _write(f"/proc/self/{name}", text)


def start_loopback() -> None:
    """Bring up `lo` of a fresh network namespace: checks may talk to their own servers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def bound_processes(count: int) -> None:
    """Allow so many processes and threads in this process namespace, if the kernel can; nothing else bounds root."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release >= (6, 14):  # before it the number is the whole machine's
        _write("/proc/sys/kernel/pid_max", str(count))


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# --- mounts -------------------------------------------------------------------------------------------------------


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), None if kind is None else kind.encode())
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def keep_mounts_private() -> None:
    """From here on no mount shows outside of this namespace."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def mount_proc() -> None:
    """Show this process namespace in `/proc`."""
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def mount_empty(path: str, *, size_bytes: int) -> None:
    """Cover the folder by an empty one in memory, writable."""
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=755,size={size_bytes}")


def mount_opened(descriptor: int, path: str) -> None:
    """Show the file or folder that is open as `descriptor` at `path`, which is there."""
    _mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)


def change_mount(path: str, *, add: int = 0, remove: int = 0, recursive: bool = False) -> None:
    """Add and remove `MOUNT_…` flags; `path` is where something is mounted."""
    attributes = struct.pack("4Q", add, remove, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    call = (ctypes.c_long(_SYS_MOUNT_SETATTR), _AT_FDCWD, path.encode(), flags, attributes)
    _check(_libc.syscall(*call, ctypes.c_size_t(len(attributes))), f"mount_setattr {path}")


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A handle of the file or folder that stays valid when something is mounted over it."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
