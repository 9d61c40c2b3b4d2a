"""Rooms import in one direction: data, backbones, evaluation, heads, training, launch, scaling, commands."""

import ast
from pathlib import Path

import big_vision_lite

PACKAGE = Path(big_vision_lite.__file__).parent
RANK = {"errors": 0, "remote": 0.5, "config": 1, "data": 1, "backbones": 2, "evaluation": 2, "heads": 3, "weights": 3.5,
        "training": 4, "experiment": 4, "recipes": 5, "bench": 5, "launch": 5.5,
        "scaling": 5.7, "commands": 6, "cli": 7, "__main__": 8, "__init__": 0}
# Side rooms of equal rank do not know each other, but for the description of a run and what trains it.
FRIENDS = {("training", "experiment"), ("experiment", "training")}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "big_vision_lite":
                yield from (f"big_vision_lite.{name.name}" for name in node.names)
            else:
                yield node.module


def test_imports_point_one_way():
    wrong, seen = [], 0
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        here = relative.parts[0].removesuffix(".py")
        assert here in RANK, f"{relative}: give its room a place in RANK"
        for name in imports(path):
            if not name.startswith("big_vision_lite"):
                continue
            there, seen = room(name), seen + 1
            if there != here and RANK[there] >= RANK[here] and (here, there) not in FRIENDS:
                wrong.append(f"{relative} imports {name}")
    assert seen > 50 and not wrong, wrong


def test_no_heavy_imports_where_a_config_is_read():
    # A typo must fail at once: what only data or checkpoints need is imported where they are opened.
    import subprocess
    import sys

    heavy = ("grain", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib")
    code = f"import sys, big_vision_lite.commands.runs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
