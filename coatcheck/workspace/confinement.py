"""Which files a command sees, arranged by mounts in namespaces, or by Landlock where there are none.

Runs in the launcher's processes only. The same `View` serves three mechanisms (see `coatcheck.workspace.isolation` for
`bwrap`), so that what is hidden does not depend on what the system offers:

- everything is read-only unless said otherwise;
- `HIDDEN`: an empty folder of the command's own, or no access with Landlock;
- `READABLE`, `WRITABLE`: a file or folder as it is, also below a hidden one.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from coatcheck.workspace import kernel

HIDDEN: Final = "hidden"
READABLE: Final = "readable"
WRITABLE: Final = "writable"
View = Sequence[tuple[str, str]]
"""Access and absolute path, outer folders first: the last one that a file is in decides. Every path exists."""

_EMPTY_BYTES: Final = 64 * 1024**2
"""For what a command writes into `/tmp` and other covered folders, which is memory; its TMPDIR is on disk."""
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))


# --- mounts -------------------------------------------------------------------------------------------------------


def arrange(view: View, *, max_processes: int) -> None:
    """As process 1 of fresh namespaces: mount the view. What is mounted over cannot be uncovered without privileges.

    Raises:
        OSError: a mount is refused.
    """
    kernel.keep_mounts_private()
    kernel.mount_proc()
    kernel.bound_processes(max_processes)
    with ExitStack() as stack:
        shown = {path: stack.enter_context(kernel.opened(path)) for access, path in view if access != HIDDEN}
        devices = {name: stack.enter_context(kernel.opened(f"/dev/{name}")) for name in _DEVICES}
        kernel.change_mount(
            "/", add=kernel.MOUNT_READ_ONLY | kernel.MOUNT_NO_SUID | kernel.MOUNT_NO_DEVICES, recursive=True
        )
        for access, path in view:
            if access == HIDDEN:
                if os.path.isdir(path):  # noqa: PTH112  it is not there when a folder around it is covered already
                    kernel.mount_empty(path, size_bytes=_EMPTY_BYTES)
                continue
            _show(shown[path], path)
            if access == WRITABLE:
                kernel.change_mount(path, remove=kernel.MOUNT_READ_ONLY)
        _mount_devices(devices)
    os.chdir("/")  # the folder where we were may be one that is covered now


def _show(descriptor: int, path: str) -> None:
    if not os.path.lexists(path):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            Path(path).mkdir(parents=True)
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    kernel.mount_opened(descriptor, path)


def _mount_devices(devices: dict[str, int]) -> None:
    """A `/dev` without disks and terminals: root in a namespace could still open the machine's by their permissions."""
    kernel.mount_empty("/dev", size_bytes=_EMPTY_BYTES)
    for name, descriptor in devices.items():
        target = f"/dev/{name}"
        Path(target).touch()
        kernel.mount_opened(descriptor, target)
        kernel.change_mount(target, remove=kernel.MOUNT_NO_DEVICES)
    for name, target in _LINKS:
        Path(f"/dev/{name}").symlink_to(f"/proc/self/{target}")
    Path("/dev/shm").mkdir(mode=0o1777)  # noqa: S108  the check's own


# --- Landlock -----------------------------------------------------------------------------------------------------
# <linux/landlock.h>; Linux 5.13, also in containers that allow no namespaces.

_SYS_CREATE_RULESET: Final = 444
_SYS_ADD_RULE: Final = 445
_SYS_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_CHANGE_FOLDER: Final = sum(1 << bit for bit in range(4, 13))
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_ON_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_SCOPE_SIGNALS: Final = 2
_SHARED: Final = ("/dev", "/tmp", "/var/tmp")  # noqa: S108  of all processes, and writable for this one too
_REFER_VERSION: Final = 2
_TRUNCATE_VERSION: Final = 3
_SCOPE_VERSION: Final = 6

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 when there is none."""
    none = ctypes.c_void_p(None)
    found = _libc.syscall(ctypes.c_long(_SYS_CREATE_RULESET), none, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    return max(0, int(found))


def restrict_files(view: View) -> None:
    """Keep this process and its children to the view, and from signalling others where the kernel can.

    Landlock only allows, so the rest of a folder with something hidden in it is allowed entry by entry: what is made
    beside a hidden folder later is not accessible.

    Raises:
        OSError: the kernel refuses.
    """
    version = landlock_version()
    read = _READ_FILE | _READ_DIR | _EXECUTE
    write = _WRITE_FILE | _CHANGE_FOLDER
    write |= (_REFER if version >= _REFER_VERSION else 0) | (_TRUNCATE if version >= _TRUNCATE_VERSION else 0)
    attributes = struct.pack("3Q", read | write, 0, _SCOPE_SIGNALS)
    size = len(attributes) if version >= _SCOPE_VERSION else 8
    ruleset = _landlock(_SYS_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        hidden = frozenset(path for access, path in view if access == HIDDEN and path not in _SHARED)
        writable = (*_SHARED, *(path for access, path in view if access == WRITABLE))
        readable = ("/", *(path for access, path in view if access == READABLE))
        for rights, paths in ((read, readable), (read | write, writable)):
            for path in paths:
                for entry in _entries(path, hidden - {path}):
                    _allow(ruleset, entry, rights)
        _landlock(_SYS_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _entries(path: str, hidden: frozenset[str]) -> Iterator[str]:
    """The largest trees that are the folder without what is hidden in it."""
    if path in hidden or os.path.islink(path):  # noqa: PTH114  what a link leads to has a rule of its own
        return
    inside = path.rstrip("/") + "/"
    if not any(name.startswith(inside) for name in hidden):
        yield path
        return
    for entry in sorted(os.listdir(path)):  # noqa: PTH208  names
        yield from _entries(inside + entry, hidden)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # gone since it was listed
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_FILES
        _landlock(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _landlock(call: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(call), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
