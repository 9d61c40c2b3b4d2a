"""Mutation testing: put one fault at a time into a copy of the package, and see whether the tests of its room fail.

    python tools/mutants.py --sample 200 --seed 0

mutants.toml says where faults are put, which, and which tests must notice; the faults are cosmic-ray's. The csv gets a
row per fault as it is tried, and a run that was stopped goes on from there. Whether a line is in the sample depends on
that line alone, so the sample stays the same as other lines change.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "big_vision_lite"
CONFIG = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
FIELDS = ("module", "line", "before", "after", "outcome", "seconds")
NOT_COPIED = ("build", "runs", "colabs", "venv")  # at the top; files that git ignores, and what no test reads
MEMORY = 16 * 2**30  # bytes of address space per test process: a fault in a size must not fill the machine


class Mutant(NamedTuple):
    """One fault: its place, the line before and after, and the module's whole text with it."""

    module: str
    line: int
    before: str
    after: str
    code: str


def tests_of(module: str) -> tuple[str, ...] | None:
    """The test files for a module, by its path below the package; None if it gets no faults."""
    if re.fullmatch(CONFIG["left_out"], module):
        return None
    return next((tuple(tests) for start, tests in CONFIG["tests"].items() if module.startswith(start)), None)


def sample(count: int, seed: int, only: str = "") -> list[Mutant]:
    """``count`` faults at different places of modules whose path begins with ``only``."""
    operators = {name: cosmic_ray.plugins.get_operator(name)() for name in cosmic_ray.plugins.operator_names()
                 if re.fullmatch(f"core/({CONFIG['operators']})", name)}
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("[!_]*.py"))}
    first = {}  # by place, the fault with the lowest rank
    for module, source in sources.items():
        if not module.startswith(only) or not tests_of(module):
            continue
        lines, nodes = source.splitlines(), list(ast_nodes(get_ast(source)))
        for name, operator in operators.items():
            places = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
            for occurrence, (node, start) in enumerate(places):
                if _is_behaviour(node):
                    text = f"{seed} {module} {lines[start[0] - 1].strip()} {start[1]} {name} {occurrence % 2}"
                    fault = hashlib.sha256(text.encode()).hexdigest(), name, occurrence
                    first[module, start] = min(first.get((module, start), fault), fault)
    mutants = []
    for (_, name, occurrence), (module, start) in sorted((fault, place) for place, fault in first.items())[:count]:
        code = mutate_code(sources[module], operators[name], occurrence)
        before, after = next((old.strip(), new.strip()) for old, new in zip(
            sources[module].splitlines(), code.splitlines(), strict=False) if old != new)
        mutants.append(Mutant(module, start[0], before, after, code))
    return mutants


def _is_behaviour(node) -> bool:
    """Whether a node is no annotation, decorator or message, no ``*`` of a signature or ``**`` of a dict, and not zip's
    ``strict``."""
    if node.type == "operator" and node.parent.type in ("parameters", "dictorsetmaker", "atom"):
        return False
    while (parent := node.parent) is not None:
        if parent.type in ("fstring", "tfpdef", "decorator") or node is getattr(parent, "annotation", None) or (
                parent.type == "annassign" and node is parent.children[1]) or (
                parent.type == "argument" and parent.children[0].get_code().strip() == "strict"):
            return False
        node = parent
    return True


@functools.cache
def _copy(folder: str) -> Path:
    """The copy of the repository in which this process works."""
    def ignored(place: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(".") or name == "__pycache__" or (
            Path(place) == ROOT and name in NOT_COPIED)]

    return Path(shutil.copytree(ROOT, Path(tempfile.mkdtemp(dir=folder)) / "tree", ignore=ignored))


def run_tests(folder: str, tests: tuple[str, ...], limit: float = 1200, mutant: Mutant | None = None
              ) -> tuple[str, float]:
    """Run tests, with a fault or without: "killed", "timeout" or "survived", and the seconds that it took."""
    path = _copy(folder) / PACKAGE.name / (mutant.module if mutant else "__init__.py")
    original, start = path.read_text(), time.monotonic()
    path.write_text(mutant.code if mutant else original)
    process = subprocess.Popen(  # a group of its own, so that whatever it starts ends with it
        [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider", *tests], cwd=_copy(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(_copy(folder)), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)))
    try:
        return "killed" if process.wait(limit) else "survived", time.monotonic() - start
    except subprocess.TimeoutExpired:
        return "timeout", limit
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        path.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200, help="number of faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="start of the modules' paths, such as heads/detection")
    parser.add_argument("--retry", action="store_true", help="try the survivors again")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.csv")
    options = parser.parse_args()
    mutants = sample(options.sample, options.seed, options.only)
    done = {(row["module"], int(row["line"]), row["before"], row["after"]): row for row in _rows(options.out)
            if not (options.retry and row["outcome"] == "survived")}
    left = [mutant for mutant in mutants if mutant[:4] not in done]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, options.out.open("w", newline="") as file, ProcessPoolExecutor(
            options.processes, get_context("spawn")) as pool:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(done.values())
        file.flush()
        sound = {tests: pool.submit(run_tests, folder, tests) for tests in {tests_of(m.module) for m in left}}
        for tests, result in sound.items():
            print(*tests, *result.result(), flush=True)
            if result.result()[0] != "survived":
                raise SystemExit("these tests fail without a fault")
        tries = {pool.submit(run_tests, folder, tests_of(m.module), 60 + 3 * sound[tests_of(m.module)].result()[1], m):
                 m for m in left}
        for number, attempt in enumerate(as_completed(tries), 1):
            mutant, (outcome, seconds) = tries[attempt], attempt.result()
            done[mutant[:4]] = row = dict(zip(FIELDS, (*mutant[:4], outcome, round(seconds)), strict=True))
            table.writerow(row)
            file.flush()
            print(f"{number}/{len(left)} {_shown(row)}", flush=True)
    summarize([done[mutant[:4]] for mutant in mutants])


def summarize(rows: list[dict]) -> None:
    """Print the survivors and the share that was noticed, per room, without the faults that no test can notice."""
    equivalent = {(row["module"], row["before"], row["after"]) for row in _rows(
        Path(__file__).with_name("equivalent_mutants.csv"))}
    rows = [row for row in rows if (row["module"], row["before"], row["after"]) not in equivalent]
    print("", *(_shown(row) for row in rows if row["outcome"] == "survived"), sep="\n")
    for room in (*sorted({row["module"].rpartition("/")[0] for row in rows}), ""):
        outcomes = [row["outcome"] for row in rows if row["module"].startswith(room)]
        noticed = len(outcomes) - outcomes.count("survived")
        print(f"{room or 'all'}: {noticed} of {len(outcomes)} noticed ({noticed / max(len(outcomes), 1):.1%})")


def _rows(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def _shown(row: dict) -> str:
    return f"{row['outcome']}: {row['module']}:{row['line']}\n    - {row['before']}\n    + {row['after']}"


if __name__ == "__main__":
    main()
