"""One owner per folder: its ``owner.json`` says which process writes there, from the first write until it ends.

On a disk the owner holds a lock (flock) on that file. The kernel drops it however the process ends, and NFS carries it
to other machines. Some network disks do not, and a bucket has no locks. So the owner also renews the file every `BEAT`
seconds, and whoever finds the file of another machine takes over only after watching it for `LEASE` seconds without a
renewal: no clocks are compared. In a bucket each change names the generation of the object that it replaces, so that of
several changes at once only one happens.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from big_vision_lite.errors import UserError
from big_vision_lite.system.paths import RemotePath

FILE = "owner.json"
BEAT = 10.0
"""Seconds between renewals."""
LEASE = 60.0
"""Seconds without a renewal after which the process of another machine counts as gone."""
SETTLE = 1.0
"""Seconds until others that start at the same moment have written the file, on a disk without locks."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps


class Owner(msgspec.Struct, frozen=True):
    """The content of owner.json."""

    host: str
    pid: int
    kernel: str
    """Boot and pid namespace, without which the pid means nothing; empty where they are unknown."""
    began: str
    """When the process started, in the kernel's ticks: a later process may have the same pid."""
    since: float
    """Seconds since the epoch, for messages only."""
    token: str
    """Of this ownership alone."""
    beats: int = 0
    """Renewals so far; only a bucket needs them, where they change the object."""
    released: bool = False
    """Whether the owner has left. Mostly its file is removed instead: see `Ownership.release`."""

    @classmethod
    def this_process(cls) -> Owner:
        return cls(platform.node(), os.getpid(), _kernel(), _start_of(os.getpid()), time.time(), uuid.uuid4().hex)

    def has_ended(self) -> bool:
        """Whether the process has certainly ended; False where this machine cannot know."""
        if not self.kernel or self.kernel != _kernel():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's; /proc may hide it
            return False
        return _start_of(self.pid) != self.began

    def __str__(self) -> str:
        age = datetime.timedelta(seconds=max(round(time.time() - self.since), 0))
        return f"process {self.pid} on {self.host}, which began {age} ago"


class InUse(UserError):
    """Another process owns the folder."""

    @classmethod
    def by(cls, owner: Owner | None, folder: Path) -> InUse:
        return InUse(f"{str(folder)!r} is in use by {owner or 'another process'}; wait until it has ended, or choose "
                     "another folder")


def end_process(message: str) -> None:
    """What a process does that has lost its folder: it must not write any more, in any thread."""
    print(f"bvl: {message}", file=sys.stderr, flush=True)
    os._exit(2)


def own(folder: Path, patience: float = 0, on_loss: Callable[[str], None] = end_process) -> Ownership:
    """Become the owner of a folder, which is made if there is none.

    Args:
      patience: seconds to wait for another owner to end.
      on_loss: called with a message, from any thread, when another process has become the owner.

    Raises:
      InUse: another process owns the folder.
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = _Object(folder) if isinstance(folder, RemotePath) else _File(folder)
    deadline, announced = _now() + patience, False
    while True:
        try:
            return Ownership(record, *_take(record), on_loss)
        except BaseException as error:
            record.close()
            if not isinstance(error, InUse) or _now() >= deadline:
                raise
            if not announced:
                print(f"bvl: {str(error).partition('; ')[0]}; waiting for up to {patience:.0f} s", file=sys.stderr)
                announced = True
            time.sleep(0.2)


class Ownership:
    """A folder's ownership, which a thread renews until `release`."""

    def __init__(self, record: _File | _Object, taken_over: str, keep: bool, on_loss: Callable[[str], None]):
        self.taken_over = taken_over
        """From whom and why, or ""."""
        self._record, self._keep, self._on_loss, self._pid = record, keep, on_loss, os.getpid()
        self._confirmed = _now()
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._beat, name="ownership", daemon=True).start()

    def __enter__(self) -> Ownership:
        return self

    def __exit__(self, *unused: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            self._renew()

    def _renew(self) -> None:
        other = None
        with self._lock, contextlib.suppress(OSError):  # the disk is away for a moment, which `confirm` tells
            if not self._closed.is_set():
                other = self._record.renew()
                self._confirmed = _now()
        if other is not None:
            self._closed.set()
            self._on_loss(f"{str(self._record.folder)!r} was taken over by {other}, since this process was stopped or "
                          f"cut off for more than {LEASE:.0f} s, or {FILE} was removed; it writes nothing more")

    def confirm(self) -> bool:
        """To be called before writing: whether the folder is this process's, as far as it can be reached. Takes no time
        while the thread renews it; but that is stopped with the process, which may have lost the folder when it is
        continued."""
        if _now() - self._confirmed >= LEASE / 2:
            self._renew()
        return _now() - self._confirmed < LEASE / 2

    def release(self) -> None:
        """Leave the folder to others. The file stays where an earlier owner may still come back to life: it must see
        that it has lost the folder."""
        with self._lock, contextlib.suppress(OSError):
            if not self._closed.is_set() and os.getpid() == self._pid:  # not in a forked child
                self._record.release(self._keep)
        self._closed.set()
        self._record.close()


def _take(record: _File | _Object) -> tuple[str, bool]:
    """Become the owner. Returns from whom and why, and whether an earlier owner may still live. Raises: InUse."""
    while True:
        owner, version = record.read()
        if owner is None or owner.released:
            why, may_live = "", owner is not None
        elif owner.has_ended() or (record.locked and owner.host == platform.node()):
            why, may_live = "has ended", False
        else:
            _watch(record, owner, version)
            why, may_live = f"gave no sign of life for {LEASE:.0f} s", True
        if record.replace(version):
            return f"took {str(record.folder)!r} over from {owner} and {why}" if why else "", may_live


def _watch(record: _File | _Object, owner: Owner, version: Any) -> None:
    """Return when an owner, that may live on another machine, has given no sign of life. Raises: InUse when it does."""
    print(f"bvl: watching {str(record.folder)!r} for up to {LEASE:.0f} s: is {owner}, still alive?", file=sys.stderr)
    end = _now() + LEASE
    while _now() < end:
        time.sleep(min(1.0, LEASE / 20))
        current, changed = record.read()
        if current is None or current.released:
            return
        if changed != version:
            raise InUse.by(current, record.folder)


class _File:
    """owner.json on a disk. ``locked``: by flock; False where the disk does not know it."""

    def __init__(self, folder: Path):
        self.folder, self._path, self._me = folder, folder / FILE, Owner.this_process()
        self.locked, self._descriptor = False, -1

    def read(self) -> tuple[Owner | None, Any]:
        """The owner, and what changes with each renewal. Raises: InUse when another process holds the lock."""
        while True:
            if self._descriptor < 0:
                self._open()
            with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:  # opened anew: NFS caches
                status, content = os.fstat(file.fileno()), file.read()
                if os.path.samestat(status, os.fstat(self._descriptor)):
                    return _decoded(content), (content, status.st_mtime_ns)
            self.close()  # its owner has removed it meanwhile

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        _descriptors.add(self._descriptor)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.locked = True
        except BlockingIOError:
            raise InUse.by(_decoded(os.pread(self._descriptor, 4096, 0)), self.folder) from None
        except OSError:  # not on this disk
            self.locked = False

    def replace(self, version: Any) -> bool:
        """Become the owner if nothing has changed. Raises: InUse."""
        if self.read()[1] != version:
            return False
        self._write(self._me)
        if not self.locked:  # of several that have found no owner at once, the last to write becomes it
            time.sleep(SETTLE)
            owner = self.read()[0]
            return owner is not None and owner.token == self._me.token
        return True

    def _write(self, owner: Owner) -> None:
        content = msgspec.json.encode(owner)
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def renew(self) -> Owner | None:
        """Returns the other owner, if there is one."""
        try:
            with self._path.open("rb") as file:
                owner = _decoded(file.read())
                if owner is not None and owner.token != self._me.token:
                    return owner
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())
        except FileNotFoundError:
            if not self.folder.is_dir():  # away; else removed, and nobody else's
                raise
        return None

    def release(self, keep: bool) -> None:
        if self.renew() is not None:
            return
        if keep:
            self._write(msgspec.structs.replace(self._me, released=True))
        else:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor in _descriptors:
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1


class _Object:
    """owner.json in a bucket."""

    locked = False

    def __init__(self, folder: RemotePath):
        self.folder, self._path, self._me = folder, folder / FILE, Owner.this_process()
        self._generation = 0

    def read(self) -> tuple[Owner | None, int]:
        try:
            content, generation = self._path.read_generation()
        except FileNotFoundError:
            return None, 0
        return _decoded(content), generation

    def replace(self, generation: int) -> bool:
        try:
            self._generation = self._path.write_if(generation, msgspec.json.encode(self._me))
        except FileExistsError:
            owner, self._generation = self.read()
            return owner is not None and owner.token == self._me.token  # written, but the answer was lost
        return True

    def renew(self) -> Owner | None:
        self._me = msgspec.structs.replace(self._me, beats=self._me.beats + 1)
        if not self.replace(self._generation):
            owner, generation = self.read()
            if owner is not None:
                return owner
            self.replace(generation)  # removed by hand
        return None

    def release(self, keep: bool) -> None:
        if keep:
            self._me = msgspec.structs.replace(self._me, released=True)
            self.replace(self._generation)
        else:
            self._path.unlink_if(self._generation)

    def close(self) -> None:
        pass


_descriptors: set[int] = set()


def _close_in_child() -> None:
    """A forked child shares its parent's locks, which would outlive the parent with it."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _decoded(content: bytes) -> Owner | None:
    """None while its owner is writing it for the first time, and for what is no owner.json."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(content, type=Owner)
    return None


def _now() -> float:
    return time.clock_gettime(_CLOCK)


@functools.cache
def _kernel() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_of(pid: int) -> str:
    """Empty for a process that has ended, though its parent has not noticed yet."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""
