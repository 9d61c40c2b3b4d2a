"""Checkpoints: the whole state of a run in one step folder, written in the background, complete or not there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from big_vision_lite.errors import UserError
from big_vision_lite.remote import RemotePath, place
from big_vision_lite.training.distributed import agreed, is_first, meet

STATE, CONFIG, DATA = "state", "config", "data"
SLICE = 2**24
"""Bytes from which on several processes write an array that lies whole on every device in parts, one a device. To cut
smaller ones takes longer than to copy them: for a ResNet-152's 1,550, seven times as long on two CPU devices."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by their dotted path: the names in a checkpoint and in every message about one."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


class Damaged(UserError):
    """A checkpoint that cannot be read."""


class NotSaved(UserError):
    """A checkpoint that could not be written. ``full``: for want of space."""

    def __init__(self, message: str, full: bool):
        super().__init__(message)
        self.full = full


class Checkpoints:
    """The checkpoints of one run, in ``folder/STEP/``.

    Raises:
      UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every step it takes
        folder = place(folder)
        self._ocp, self.folder, self._keep = ocp, folder, keep
        self._thread, self._begun = ThreadPoolExecutor(1, "checkpoint"), None  # Future of a save that begins there
        if keep is None and not folder.is_dir():
            raise UserError(f"no checkpoints in {str(folder.parent)!r}; expected a run folder with checkpoints/")
        self._open()

    def _open(self) -> None:
        ocp, reading = self._ocp, self._keep is None
        ocp.type_handlers.register_type_handler(
            jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE), override=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=not reading, read_only=reading,
                                               enable_async_checkpointing=not reading)
        handlers = {STATE: ocp.StandardCheckpointHandler(), CONFIG: ocp.JsonCheckpointHandler(),
                    DATA: ocp.JsonCheckpointHandler()}  # without them a manager that has not saved knows no shapes
        try:
            self._manager = ocp.CheckpointManager(str(self.folder.absolute()), options=options, item_handlers=handlers)
        except Exception as error:
            if not isinstance(error, OSError) and not isinstance(self.folder, RemotePath):
                raise  # of a bucket the errors are Google's own: of credentials, of HTTP
            said = getattr(error, "strerror", None) or _first_line(str(error))
            raise UserError(f"cannot write checkpoints to {str(self.folder)!r}: {said}") from error

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, config: Any, data: dict[str, int]) -> None:
        """Start saving; returns once the state is on the host. ``data``: where the input stands.

        Raises:
          NotSaved: this save or the one before it failed; of this one mostly `wait` tells. Earlier checkpoints are
            untouched.
        """
        def begin(leaves: dict[str, Any]) -> None:
            args = self._ocp.args
            items = args.Composite(**{STATE: args.StandardSave(leaves), CONFIG: args.JsonSave(config),
                                      DATA: args.JsonSave(data)})
            self._manager.save(step, args=items, force=True)

        leaves = flatten(state)
        if jax.process_count() > 1:  # parts lie on several hosts, which come to Orbax's meetings in the loop's order
            self._guard(lambda: begin(leaves))
        else:  # Orbax takes a tenth of a millisecond an array to begin, for which the loop need not wait
            self._guard(self._end_beginning)
            self._begun = self._thread.submit(begin, jax.device_get(leaves))

    def _end_beginning(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def writing(self) -> bool:
        """Whether a save that was started is not all written yet."""
        return (self._begun is not None and not self._begun.done()) or self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Return when all is written. Raises: NotSaved as ``save``."""
        def finish() -> None:
            self._end_beginning()
            self._manager.wait_until_finished()

        self._guard(finish)

    def settle(self, say: Callable[[str], None]) -> None:
        """Return when what was being written is, or is given up: a disk may be away for a moment, and the next save
        makes up for it. ``say`` is told of it.

        Raises:
          NotSaved: the disk is full; or there are several processes, of which some may have written their part.
        """
        try:
            self.wait()
        except NotSaved as error:
            if error.full or jax.process_count() > 1:
                raise
            say(str(error))
            with contextlib.suppress(Exception):  # it tells of the same failure again
                self._manager.close()
            self._open()

    def close(self) -> None:
        self._thread.shutdown()
        with contextlib.suppress(NotSaved):  # `wait` tells of it; here it would hide why the run ends
            self._guard(self._manager.close)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # the writer's own errors come from C++, without a common type
            text = str(error)
            full = any(sign in text for sign in ("RESOURCE_EXHAUSTED", "No space", "File too large"))
            # One that names a file of ours is the disk's, whatever else it says.
            signs = ("OS error", "Errno", "Error writing", "Error reading", str(self.folder.absolute()))
            if not full and not isinstance(error, OSError) and not any(sign in text for sign in signs) and (
                    not isinstance(self.folder, RemotePath) or isinstance(error, TypeError | AttributeError)):
                raise
            newest = self.latest()
            kept = f"the checkpoint of step {newest} is kept" if newest is not None else "there is no earlier one"
            advice = "free some space and start the same command again" if full else "see that the disk is there"
            raise NotSaved(f"cannot save a checkpoint in {str(self.folder)!r}: {_first_line(text)}; {kept}; {advice}",
                           full) from error

    def restore_newest(self, like: Any, say: Callable[[str], None]) -> tuple[int, Any, dict[str, int]]:
        """The newest checkpoint that can be read: its step and what `restore` gives; step 0 where there is none at all.
        Newer ones that cannot be read are moved to ``damaged/`` beside the folder, and ``say`` is told of it.

        Raises:
          UserError: there are some, and none can be read; or as `restore`, of another network.
        """
        newest, broken = agreed(self.latest() or 0), []
        for step in sorted((s for s in self.steps() if s <= newest), reverse=True):
            try:
                state, data = self.restore(step, like)
            except Damaged as error:
                broken.append((step, error))
                continue
            for damaged, error in broken:
                say(f"{error}; moved to {self._set_aside(damaged)}, going on from step {step}")
            return step, state, data
        if broken:
            raise UserError(f"{broken[0][1]}; nor can any other in {str(self.folder)!r}; bring one back, or remove the "
                            "folder to start anew")
        return 0, None, {}

    def _set_aside(self, step: int) -> Path:
        target = self.folder.parent / "damaged" / str(step)
        while is_first() and target.exists():
            target = target.with_name(target.name + "_")
        if is_first():
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        meet(f"checkpoint {step} is set aside")
        self._manager.reload()
        return target

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, int]]:
        """The state of ``step``, in the structure, dtypes and shardings of ``like`` (arrays or their descriptions),
        and where its input stood.

        Raises:
          UserError: the checkpoint is of another network: names the first leaf that differs.
          Damaged: it cannot be read.
        """
        target = flatten(like)
        saved = self._read(step, lambda: self._shapes(step))
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
        wanted = args.Composite(**{STATE: args.StandardRestore(target), DATA: args.JsonRestore()})
        items = self._read(step, lambda: self._manager.restore(step, args=wanted))
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [items[STATE][name] for name in target]), dict(items[DATA])

    def arrays(self, step: int | None = None) -> dict[str, Any]:
        """All arrays of a checkpoint by their names, on the host. ``step``: None for the newest.

        Raises:
          UserError: there is no such checkpoint, or it cannot be read.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise UserError(f"{str(self.folder.parent)!r} has no checkpoint" + (
                f" of step {step}; it has {', '.join(map(str, steps))}" if steps else " that is complete"))
        chosen = steps[-1] if step is None else step
        import numpy as np

        args = self._ocp.args

        def read() -> dict[str, Any]:
            shapes = self._manager.item_metadata(chosen)[STATE]
            like = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
            wanted = args.Composite(**{STATE: args.StandardRestore(like)})
            return dict(self._manager.restore(chosen, args=wanted)[STATE])

        return self._read(chosen, read)

    def _read(self, step: int, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # what the reader raises depends on the file that was cut
            raise Damaged(f"checkpoint {self.folder / str(step)} cannot be read, it may have been cut: "
                          f"{_first_line(str(error))}") from error

    def _shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        metadata = self._manager.item_metadata(step)[STATE]
        return {name: leaf.shape for name, leaf in metadata.items()}


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "unknown error"
