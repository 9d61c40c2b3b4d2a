"""Where checksums enter a save by Orbax: while arrays are written, and in place of its mark of a complete checkpoint.

Imported only once checkpoints are used, since Orbax takes seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.path import atomicity

from big_vision_lite.system.paths import RemotePath, as_path
from big_vision_lite.training.checksums import PART, GrowingFolder, encode, seal

POLL = 0.01
"""Seconds between looks at what was written."""


def temporary_path_class(folder: Path) -> type[atomicity.TemporaryPathBase]:
    """Orbax's class for checkpoints that are not complete yet, with checksums as the last file."""
    return _UntilMark if isinstance(folder, RemotePath) else _UntilRenamed


class _UntilRenamed(atomicity.AtomicRenameTemporaryPath):
    async def finalize(self) -> None:
        if self._checkpoint_metadata_store is None:  # of an item, a folder within the checkpoint
            return await super().finalize()
        await asyncio.to_thread(_finish, self)
        await asyncio.to_thread(self.get().rename, self.get_final())


class _UntilMark(atomicity.CommitFileTemporaryPath):
    async def finalize(self) -> None:
        if self._checkpoint_metadata_store is None:
            return await super().finalize()
        await asyncio.to_thread(_finish, self)


def _finish(path: atomicity.TemporaryPathBase) -> None:
    """What Orbax does last, with the checksums where it would write its mark."""
    store = path._checkpoint_metadata_store
    store.wait_until_finished()
    store.update(file_path=path.get() / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=time.time_ns())
    store.wait_until_finished()
    seal(as_path(str(path.get())))


def with_checksums(handler: ocp.StandardCheckpointHandler) -> ocp.StandardCheckpointHandler:
    """The handler, whose saves also sum up the files that this process writes. (A subclass of it would not do: Orbax
    looks up the arguments of a handler by its exact class.)"""
    save = handler.async_save

    async def async_save(directory: Any, *args: Any, **kwargs: Any) -> Sequence[Any]:
        writes = await save(directory, *args, **kwargs)
        folder = as_path(str(directory))
        return writes if isinstance(folder, RemotePath) else [_SummedUp(writes, folder)]

    handler.async_save = async_save
    return handler


class _SummedUp:
    """A future for Orbax: done when the writes are. The thread that waits for it sums up the files meanwhile."""

    def __init__(self, writes: Sequence[Any], folder: Path):
        process = jax.process_index()
        self._writes, self._part = writes, folder / f"{PART}{process}"
        self._files = GrowingFolder(folder / f"ocdbt.process_{process}")

    def result(self, timeout: float | None = None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        for write in self._writes:
            while not self._is_done(write, end):
                self._files.advance()
        self._part.write_bytes(encode(self._files.finish()))

    def _is_done(self, write: Any, end: float | None) -> bool:
        try:
            write.result(timeout=POLL)
        except TimeoutError:
            if end is not None and time.monotonic() > end:
                raise
            return False
        return True

    def cancel(self) -> None:
        for write in self._writes:
            write.cancel()
