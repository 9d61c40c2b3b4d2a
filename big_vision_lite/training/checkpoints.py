"""Checkpoints: the whole state of a run, one folder per step, written in the background, complete or absent.

Each has checksums (checksums.py), which are verified before anything else is read: TensorStore would take changed
numbers for good ones, and may crash on changed files.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from big_vision_lite.errors import UserError, first_line
from big_vision_lite.system.paths import RemotePath, as_path
from big_vision_lite.training.checksums import damage
from big_vision_lite.training.distributed import barrier, broadcast_from_0, first_reported, is_primary
from big_vision_lite.training.trees import flatten

STATE, CONFIG, DATA = "state", "config", "data"
SLICE = 2**24
"""Smallest replicated array, in bytes, that several processes save in parts, one per device. Cutting smaller ones takes
longer than copying them: for a ResNet-152's 1,550, seven times as long on two CPU devices."""
_ONE_WRITER = threading.Lock()
"""Held while a checkpoint is written: Orbax finds a save's parts by one counter per process, so that the saves of two
runs in one process would wait for each other for ever."""
_FULL = "No space left on device", "Disk quota exceeded", "File too large"
"""What the system says when a file cannot grow; TensorStore says it at the end of its messages."""


class Damaged(UserError):
    """A checkpoint that is not as it was written, or cannot be read."""


class NotSaved(UserError):
    """A checkpoint that could not be written. ``full``: because the disk is full."""

    def __init__(self, message: str, full: bool):
        super().__init__(message)
        self.full = full


class Checkpoints:
    """The checkpoints of one run, in ``folder/STEP/``.

    Args:
      max_checkpoints: number of checkpoints to keep; None: only read.
      keep: steps whose checkpoints are kept as well.

    Attributes:
      best: another such step, which may change; None: there is none.

    Raises:
      UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, max_checkpoints: int | None = None, keep: Sequence[int] = ()):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every step it takes, and what it raises
        folder = as_path(folder)
        self._ocp, self.folder, self._max_checkpoints, self._keep = ocp, folder, max_checkpoints, frozenset(keep)
        self.best: int | None = None
        self._verified: set[int] = set()
        self._thread, self._begin = ThreadPoolExecutor(1, "checkpoint"), None  # future of a save's begin
        if max_checkpoints is None and not folder.is_dir():
            raise UserError(f"no checkpoints in {str(folder.parent)!r}; expected a run folder with checkpoints/")
        self._open()

    def _open(self) -> None:
        from big_vision_lite.training.orbax_hooks import temporary_path_class, with_checksums

        ocp, read_only = self._ocp, self._max_checkpoints is None
        ocp.type_handlers.register_type_handler(
            jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE), override=True)
        policies = ocp.checkpoint_managers
        preserved = policies.AnyPreservationPolicy([policies.LatestN(self._max_checkpoints), _Kept(self)])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preserved, create=not read_only, read_only=read_only,
            enable_async_checkpointing=not read_only, temporary_path_class=temporary_path_class(self.folder),
            lightweight_initialize=True)  # reads nothing of checkpoints that are not verified yet
        handlers = {STATE: with_checksums(ocp.StandardCheckpointHandler()), CONFIG: ocp.JsonCheckpointHandler(),
                    DATA: ocp.JsonCheckpointHandler()}  # without them a manager that has not saved cannot read shapes
        try:
            self._manager = ocp.CheckpointManager(str(self.folder.absolute()), options=options, item_handlers=handlers)
        except Exception as error:
            if not isinstance(error, OSError) and not isinstance(self.folder, RemotePath):
                raise  # for a bucket they are Google's own: credentials', HTTP's
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"cannot write checkpoints to {str(self.folder)!r}: {reason}") from error

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of a step stays when newer ones are there."""
        return step in self._keep or step == self.best

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def existing(self, step: int | None) -> int:
        """``step``, or the newest where that is None.

        Raises:
          UserError: there is no such checkpoint.
          Damaged: it is not as it was written; names the newest one that is.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{str(self.folder.parent)!r} has no complete checkpoint yet")
        if step is not None and step not in steps:
            raise UserError(f"{str(self.folder.parent)!r} has no checkpoint of step {step}; it has "
                            f"{', '.join(map(str, steps))}")
        step = steps[-1] if step is None else step
        try:
            self.verify(step)
        except Damaged as error:
            sound = next((other for other in reversed(steps) if other != step and self._is_sound(other)), None)
            advice = "no other one is sound" if sound is None else f"step {sound} is sound, ask for it by number"
            raise Damaged(f"{error}; {advice}") from None
        return step

    def verify(self, step: int) -> None:
        """Compare the files of a checkpoint with their checksums; each of several processes does a share, and all come
        to the same end.

        Raises:
          Damaged: one differs, and which.
          UserError: they cannot be read.
        """
        if step not in self._verified:
            problem = damage(self.folder / str(step), slice(jax.process_index(), None, jax.process_count()))
            if problem := first_reported(problem):
                raise Damaged(f"checkpoint {self.folder / str(step)} is damaged: {problem}")
            self._verified.add(step)

    def _is_sound(self, step: int) -> bool:
        with contextlib.suppress(Damaged):
            self.verify(step)
            return True
        return False

    def save(self, step: int, state: Any, config: Any, data: dict[str, int]) -> None:
        """Start saving; returns once the state is on the host.

        Args:
          data: the position of the input pipeline.

        Raises:
          NotSaved: this save or the previous one failed; mostly `wait` reports the failure of this one. Earlier
            checkpoints are untouched.
        """
        def begin(leaves: dict[str, Any]) -> None:
            args = self._ocp.args
            items = args.Composite(**{STATE: args.StandardSave(leaves), CONFIG: args.JsonSave(config),
                                      DATA: args.JsonSave(data)})
            self._manager.save(step, args=items, force=True)

        def write(leaves: dict[str, Any]) -> None:
            with _ONE_WRITER:
                begin(leaves)
                while self._manager.is_saving_in_progress():
                    time.sleep(0.005)

        leaves = flatten(state)
        self._verified.discard(step)
        if jax.process_count() > 1:  # all processes must reach Orbax's barriers in the loop's order
            self._guard(lambda: begin(leaves))
        else:  # Orbax takes 0.1 ms per array to begin, which the loop need not wait for
            self._guard(self._wait_for_begin)
            self._begin = self._thread.submit(write, jax.device_get(leaves))

    def _wait_for_begin(self) -> None:
        pending, self._begin = self._begin, None
        if pending is not None:
            pending.result()

    def writing(self) -> bool:
        """Whether a save is in progress."""
        return (self._begin is not None and not self._begin.done()) or self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Return when everything is written. Raises: NotSaved as ``save``."""
        def finish() -> None:
            self._wait_for_begin()
            self._manager.wait_until_finished()

        self._guard(finish)

    def finish_or_drop(self, say: Callable[[str], None]) -> None:
        """Return when the save in progress has ended. If it failed, report that by ``say`` and go on: a disk may be
        away for a moment, and there will be another save.

        Raises:
          NotSaved: the disk is full; or there are several processes, some of which may have written their part.
        """
        try:
            self.wait()
        except NotSaved as error:
            if error.full or jax.process_count() > 1:
                raise
            say(str(error))
            with contextlib.suppress(Exception):  # it reports the same failure again
                self._manager.close()
            self._open()

    def close(self) -> None:
        self._thread.shutdown()
        with contextlib.suppress(NotSaved):  # `wait` reports it; here it would hide why the run ends
            self._guard(self._manager.close)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # the writer's errors come from C++, without a common type
            text = str(error)
            reason = next((sign for sign in _FULL if sign in text), first_line(error))
            full = reason in _FULL or "RESOURCE_EXHAUSTED" in text
            # An error that names a file of ours is the disk's, whatever else it says.
            signs = ("OS error", "Errno", "Error writing", "Error reading", str(self.folder.absolute()))
            if not full and not isinstance(error, OSError) and not any(sign in text for sign in signs) and (
                    not isinstance(self.folder, RemotePath) or isinstance(error, TypeError | AttributeError)):
                raise
            newest = self.latest()
            saved = f"the checkpoint of step {newest} is kept" if newest is not None else "there is no earlier one"
            advice = "free some space and start the same command again" if full else "see that the disk is there"
            raise NotSaved(f"cannot save a checkpoint in {str(self.folder)!r}: {reason}; {saved}; {advice}",
                           full) from error

    def restore_newest(self, like: Any, say: Callable[[str], None]) -> tuple[int, Any, dict[str, int]]:
        """Restore the newest checkpoint that is as it was written: its step and what `restore` returns; step 0 without
        any. Newer, damaged ones are moved to ``damaged/`` beside the folder, which ``say`` reports.

        Raises:
          UserError: there are checkpoints, and all are damaged; or as `restore`.
        """
        newest, damaged = broadcast_from_0(self.latest() or 0), []
        for step in sorted((s for s in self.steps() if s <= newest), reverse=True):
            try:
                state, data = self.restore(step, like)
            except Damaged as error:
                damaged.append((step, error))
                continue
            for bad, error in damaged:
                say(f"{error}; moved to {self._set_aside(bad)}, going on from step {step}")
            return step, state, data
        if damaged:
            raise UserError(f"{damaged[0][1]}; nor is any other in {str(self.folder)!r} sound; bring one back, or "
                            "remove the folder to start anew")
        return 0, None, {}

    def _set_aside(self, step: int) -> Path:
        target = self.folder.parent / "damaged" / str(step)
        while is_primary() and target.exists():
            target = target.with_name(target.name + "_")
        if is_primary():
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        barrier(f"checkpoint {step} is set aside")
        self._manager.close()
        self._open()
        return target

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, int]]:
        """The state of ``step`` and the position of its input pipeline.

        Args:
          like: arrays, or their shapes, of the structure, dtypes and shardings to restore.

        Raises:
          UserError: the checkpoint is of another network or optimiser; names the first leaf that differs.
          Damaged: it is not as it was written, or cannot be read.
        """
        target = flatten(like)
        saved = self._read(step, lambda: {name: leaf.shape for name, leaf in
                                          self._manager.item_metadata(step)[STATE].items()})
        for name, leaf in target.items():
            if name not in saved:
                raise UserError(f"checkpoint {self.folder / str(step)} has no {name!r}, which this experiment "
                                "needs; it was made by another architecture or optimiser")
            if tuple(saved[name]) != tuple(leaf.shape):
                raise UserError(f"checkpoint {self.folder / str(step)}: {name!r} has shape {tuple(saved[name])}, this "
                                f"experiment needs {tuple(leaf.shape)}; it was made by another architecture")
        extra = [name for name in saved if name not in target]
        if extra:
            raise UserError(f"checkpoint {self.folder / str(step)} holds {extra[0]!r} ({len(extra)} such), which "
                            "this experiment does not have; it was made by another architecture or optimiser")
        args = self._ocp.args
        to_restore = args.Composite(**{STATE: args.StandardRestore(target), DATA: args.JsonRestore()})
        items = self._read(step, lambda: self._manager.restore(step, args=to_restore))
        leaves = [items[STATE][name] for name in target]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), dict(items[DATA])

    def arrays(self, step: int | None = None) -> dict[str, Any]:
        """All arrays of a checkpoint by name, on the host. ``step``: None for the newest.

        Raises:
          UserError: there is no such checkpoint, or it is damaged or cannot be read.
        """
        step, args = self.existing(step), self._ocp.args

        def read() -> dict[str, Any]:
            metadata = self._manager.item_metadata(step)[STATE]
            like = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in metadata.items()}
            items = self._manager.restore(step, args=args.Composite(**{STATE: args.StandardRestore(like)}))
            return dict(items[STATE])

        return self._read(step, read)

    def _read(self, step: int, action: Callable[[], Any]) -> Any:
        self.verify(step)
        try:
            return action()
        except Exception as error:  # from C++, without a common type
            raise Damaged(f"checkpoint {self.folder / str(step)} cannot be read, though its checksums are right: "
                          f"{first_line(error)}; was it written by a newer Orbax than {self._ocp.__version__}?"
                          ) from error


class _Kept:
    """Orbax's policy (`PreservationPolicy`) for `Checkpoints.keeps`."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [self._checkpoints.keeps(checkpoint.step) for checkpoint in checkpoints]
