"""Imports point in one direction, from a room to those before it, and no two modules import each other in a circle."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import big_vision_lite

PACKAGE = Path(big_vision_lite.__file__).parent
ORDER = (
    "__init__", "errors", "system", "config",
    "data.ragged", "data.columns", "data.scans", "data.random_streams", "data.shuffle", "data.mixing", "data.jpeg",
    "data.decode", "data.keypoints", "data.source", "data.masks", "data.sources", "data.transforms", "data.curation",
    "data.buckets", "data.pipeline", "data.resident", "data.tools",
    "near_duplicates", "backbones", "evaluation", "heads", "weights",
    "training.trees", "training.schedules", "training.optimizers", "training.mesh", "training.step",
    "training.transfer", "training.probe", "training.flops", "experiment", "training",
    "runs", "launch",
    "scaling.laws", "scaling.studies", "scaling.paper", "scaling.report",
    "recipes", "commands", "api", "cli", "__main__",
)
"""Rooms from the lowest to the highest, with single modules where a folder is too coarse. A module belongs to the
longest of these names that fits, and imports only from that entry and those before it."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; a folder's ``__init__`` has the folder's name."""
    paths = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in paths.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, at its top or within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in submodules if name.removeprefix("big_vision_lite.") in known}
            names |= inner if len(inner) == len(submodules) else inner | {node.module}
    ours = (name.removeprefix("big_vision_lite").lstrip(".") or "__init__" for name in names
            if name.split(".")[0] == "big_vision_lite")
    return {name for name in ours if known[name] != path}


def place(module: str) -> int:
    """The index in `ORDER` of the longest name that the module is in."""
    fitting = [name for name in ORDER if module == name or module.startswith(f"{name}.")]
    assert fitting, f"{module}: give its room a place in ORDER"
    return ORDER.index(max(fitting, key=len))


def test_imports_point_one_way():
    known = modules()
    graph = {module: imports(path, known) for module, path in known.items()}
    folders = {path.relative_to(PACKAGE).parent.as_posix().replace("/", ".") for path in known.values()}
    initializers = {module for module in known if module in folders}  # "data" is data/__init__.py
    wrong = [f"{module} imports {other}" for module, others in graph.items() for other in others
             if module not in initializers and other not in initializers and place(other) > place(module)]
    assert sum(map(len, graph.values())) > 300 and not wrong, wrong
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


def test_a_wrong_direction_and_a_circle_are_noticed():
    assert place("training.optimizers") < place("experiment") < place("training.loop") < place("runs.evaluate")
    for wrong in ({"a": {"b"}, "b": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}}):
        try:
            tuple(graphlib.TopologicalSorter(wrong).static_order())
        except graphlib.CycleError:
            continue
        raise AssertionError(wrong)


def test_the_contributors_guide_lists_the_rooms_in_this_order():
    guide = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rooms = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", guide, re.MULTILINE)
    last = [max(ORDER.index(name) for name in ORDER if name.split(".")[0] == room) for room in rooms]
    assert len(rooms) > 10 and last == sorted(last), rooms


def test_no_heavy_imports_where_a_config_is_read():
    # A typo must fail at once: what only data or checkpoints need is imported where they are opened.
    heavy = ("grain", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib")
    code = f"import sys, big_vision_lite.commands.runs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
