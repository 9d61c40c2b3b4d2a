"""Trees of arrays, by the dotted names of their leaves."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

Tree = Any
"""Nested dicts of arrays, or of their shapes or shardings."""


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path: the names in checkpoints and in error messages."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def replaced(tree: Tree, values: dict[str, Any]) -> Tree:
    """The tree with new values for the named arrays, in the dtypes and shardings of the old ones."""
    leaves = [jax.device_put(np.asarray(values[name], leaf.dtype), leaf.sharding) if name in values else leaf
              for name, leaf in flatten(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
