"""The notebooks of colabs/: each runs from top to bottom in a fresh kernel, with the packages that Colab has."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ("advise", "paper_tables", "quickstart", "scaling_laws", "transfer")
PICTURES = {"advise": 1, "paper_tables": 2, "quickstart": 4, "scaling_laws": 3, "transfer": 5}
"""Figures that each notebook draws."""
SAVED = {"advise": 1, "paper_tables": 1, "quickstart": 1, "scaling_laws": 3, "transfer": 1}
"""Those saved in it, without third-party artwork."""
COLAB = {"array-record": "0.8.3", "filelock": "3.29.0", "flax": "0.11.2", "google-crc32c": "1.8.0", "grain": "0.2.17",
         "jax": "0.7.2", "matplotlib": "3.10.0", "numpy": "2.0.2", "optax": "0.2.8", "orbax-checkpoint": "0.12.0",
         "pillow": "11.3.0", "rich": "13.9.4", "safetensors": "0.7.0", "scipy": "1.16.3",
         "tensorflow-datasets": "4.9.10"}
"""Our requirements as Colab's GPU and TPU runtimes have them (the older of the two), with Python 3.12:
pip-freeze.gpu.txt and pip-freeze.tpu.txt of github.com/googlecolab/backend-info, commit 03a89033, June 2026."""


def read(name: str) -> dict:
    return json.loads((ROOT / "colabs" / f"{name}.ipynb").read_text(encoding="utf-8"))


def outputs(book: dict) -> list[dict]:
    return [output for cell in book["cells"] for output in cell.get("outputs", [])]


def printed(book: dict) -> str:
    return "".join("".join(output["text"]) for output in outputs(book) if output["output_type"] == "stream")


def pictures(book: dict) -> int:
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs(book))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name, tmp_path, tmp_path_factory):
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("colabs_execute", ROOT / "colabs" / "execute.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    scenes = tmp_path_factory.getbasetemp() / "scenes"
    env = {"TFDS_DATA_DIR": str(scenes), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    book = tool.execute(ROOT / "colabs" / f"{name}.ipynb", tmp_path, "small", env, timeout=600)
    assert pictures(book) == PICTURES[name]
    if name == "quickstart":
        assert "stopped by SIGTERM after step" in printed(book) and "going on from step" in printed(book)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_have_the_outputs_of_a_full_run(name):
    book = read(name)
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(any(line.startswith('SIZE = "full"') for line in cell["source"]) for cell in code) == 1
    assert "pip install" in "".join(code[0]["source"])
    assert not [output for output in outputs(book) if output["output_type"] == "error"]
    assert pictures(book) == SAVED[name]
    texts = "\n".join(str(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs(book))
    assert not re.search(r"/(root|home|tmp|work|Users)/", texts)  # paths of the machine it ran on
    assert (ROOT / "colabs" / f"{name}.ipynb").stat().st_size < 4_000_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_artwork_is_not_saved(name):
    cells = [cell for cell in read(name)["cells"] if "artwork" in cell["metadata"].get("tags", ())]
    assert len(cells) == PICTURES[name] - SAVED[name] and not pictures({"cells": cells})


def test_notebooks_are_all_there():
    assert sorted(path.stem for path in (ROOT / "colabs").glob("*.ipynb")) == list(NOTEBOOKS)


def test_installing_on_colab_replaces_nothing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {need.name: need.specifier for need in map(Requirement, project["dependencies"])}
    assert set(COLAB) <= set(required)
    assert not {name: version for name, version in COLAB.items() if Version(version) not in required[name]}
    assert Version("3.12") in Requirement(f"python{project['requires-python']}").specifier
