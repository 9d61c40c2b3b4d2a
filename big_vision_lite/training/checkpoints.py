"""Checkpoints: the whole state of a run in one step folder, written in the background, complete or not there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from big_vision_lite.errors import UserError

STATE, CONFIG, DATA = "state", "config", "data"


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by their dotted path: the names in a checkpoint and in every message about one."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of one run, in ``folder/STEP/``.

    Raises:
      UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every step it takes
        self._ocp, self.folder = ocp, folder
        reading = keep is None
        if reading and not folder.is_dir():
            raise UserError(f"no checkpoints in {str(folder.parent)!r}; expected a run folder with checkpoints/")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not reading, read_only=reading,
                                               enable_async_checkpointing=not reading)
        handlers = {STATE: ocp.StandardCheckpointHandler(), CONFIG: ocp.JsonCheckpointHandler(),
                    DATA: ocp.JsonCheckpointHandler()}  # without them a manager that has not saved knows no shapes
        try:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {str(folder)!r}: {error.strerror or error}") from error

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, config: Any, data: dict[str, int]) -> None:
        """Start saving; returns once the state is copied off the devices. ``data``: where the input stands.

        Raises:
          UserError: this save or the one before it failed. Earlier checkpoints are untouched.
        """
        args = self._ocp.args
        items = args.Composite(**{STATE: args.StandardSave(flatten(state)), CONFIG: args.JsonSave(config),
                                  DATA: args.JsonSave(data)})
        self._guard(lambda: self._manager.save(step, args=items, force=True))

    def wait(self) -> None:
        """Return when all is written. Raises: UserError as ``save``."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        self._manager.close()

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # the writer's own errors come from C++, without a common type
            text = str(error)
            if not isinstance(error, OSError) and not any(
                    sign in text for sign in ("RESOURCE_EXHAUSTED", "No space", "File too large", "OS error", "Errno")):
                raise
            newest = self.latest()
            kept = f"the checkpoint of step {newest} is kept" if newest is not None else "there is no earlier one"
            raise UserError(f"cannot save a checkpoint in {str(self.folder)!r}: {_first_line(text)}; {kept}; free "
                            "some space and start the same command again") from error

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, int]]:
        """The state of ``step``, in the structure, dtypes and shardings of ``like`` (arrays or their descriptions),
        and where its input stood.

        Raises:
          UserError: the checkpoint is of another network: names the first leaf that differs.
        """
        target = flatten(like)
        saved = self._shapes(step)
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
        items = self._manager.restore(step, args=args.Composite(**{STATE: args.StandardRestore(target),
                                                                    DATA: args.JsonRestore()}))
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [items[STATE][name] for name in target]), dict(items[DATA])

    def arrays(self, step: int | None = None) -> dict[str, Any]:
        """All arrays of a checkpoint by their names, on the host. ``step``: None for the newest.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise UserError(f"{str(self.folder.parent)!r} has no checkpoint" + (
                f" of step {step}; it has {', '.join(map(str, steps))}" if steps else " that is complete"))
        chosen = steps[-1] if step is None else step
        import numpy as np

        shapes = self._manager.item_metadata(chosen)[STATE]
        like = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        args = self._ocp.args
        return dict(self._manager.restore(chosen, args=args.Composite(**{STATE: args.StandardRestore(like)}))[STATE])

    def _shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        metadata = self._manager.item_metadata(step)[STATE]
        return {name: leaf.shape for name, leaf in metadata.items()}


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "unknown error"
