"""Files, archives and names from elsewhere can neither run code nor write outside their folder."""

import ast
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import big_vision_lite
from big_vision_lite import config
from big_vision_lite.errors import UserError
from big_vision_lite.weights import download

ROOT = Path(big_vision_lite.__file__).parents[1]
SOURCES = [path for folder in ("big_vision_lite", "benchmarks") for path in (ROOT / folder).rglob("*.py")]

OWN_PROCESSES = {
    ("big_vision_lite/data/tools/prepare.py", "pickle.load"),  # for its own workers, removed when they are done
    ("big_vision_lite/data/tools/beam.py", "pickle.loads"),  # of its own workers, from a folder with a random name
    ("benchmarks/baselines.py", "pickle.load"),  # from input.py, which starts it
}
"""Pickles that never leave the command that wrote them, as those that Python's own workers exchange."""
ALWAYS_WRONG = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "eval", "exec",
    "os.system", "os.popen", "shutil.unpack_archive",
}


def loading(path):
    """Calls in a file that may run what they read."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in ALWAYS_WRONG or name.rpartition(".")[2] in ("extractall", "extract"):
                yield name
            if name == "torch.load" and given.get("weights_only") != "True":
                yield name
            if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
                yield name
            if given.get("shell", "False") != "False":
                yield f"{name}(shell=...)"


def test_nothing_that_is_read_can_run(tmp_path):
    assert {(str(path.relative_to(ROOT)), name) for path in SOURCES for name in loading(path)} == OWN_PROCESSES
    wrong = tmp_path / "wrong.py"
    wrong.write_text("pickle.loads(b)\nnp.load(f, allow_pickle=True)\ntorch.load(f)\ntar.extractall()\n"
                     "run(c, shell=True)")
    assert sum(1 for _ in loading(wrong)) == 5  # the test can fail


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_instead_of_weights(tmp_path):
    from big_vision_lite.weights import files

    trap, sprung = tmp_path / "weights.npz", tmp_path / "sprung"
    np.savez(trap, a=np.array([Trap(sprung)], dtype=object))
    with pytest.raises(UserError):
        files.read_weights(str(trap))
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError):
        files.read_weights(str(bare))
    assert not sprung.exists()


def test_a_config_names_only_dataclasses(tmp_path):
    for name in ("os:system", "pathlib:Path", "big_vision_lite.config:Path", "big_vision_lite.cli:main"):
        with pytest.raises(UserError):
            config.from_json({"class": name, "command": "true"})


@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "cat/../../evil.jpg"])
def test_an_archive_is_read_where_it_stands(tmp_path, name):
    from big_vision_lite.data.sources.tar_images import TarImages

    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "JPEG")
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "cat.tar", "w") as tar:
        for member in (name, "good.jpg"):
            info = tarfile.TarInfo(member)
            info.size = len(photo.getvalue())
            tar.addfile(info, io.BytesIO(photo.getvalue()))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)}
    try:
        dataset = TarImages(str(folder)).open()
        assert [len(example["image"]) for example in map(dataset.__getitem__, range(len(dataset)))]
    except UserError as error:
        assert "evil" in str(error)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)} == before
    assert not Path("/tmp/evil.jpg").exists() and not (Path.cwd() / "evil.jpg").exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "..", "/evil"])
def test_weights_with_a_name_that_leads_elsewhere(tmp_path, monkeypatch, name):
    requested = []

    def download_file(url, target):
        requested.append(url)
        target.write_bytes(b"")

    def download_from_hub(repository, file, revision):
        assert ".." not in f"{repository}/{file}".split("/") and not file.startswith("/")
        raise OSError("no network")

    monkeypatch.setattr(download, "_download", download_file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download_from_hub)
    monkeypatch.setenv("BVL_CACHE", str(tmp_path / "cache"))
    for source in (f"hf:{name}/x.npz", f"hf:me/mine/{name}/x.npz", f"https://host/{name}/..%2f..%2fx.npz",
                   f"https://host/{name}/..\\x.npz"):
        try:
            assert download.fetch(source).parent == tmp_path / "cache" / "weights"
        except UserError as error:
            assert "AssertionError" not in str(error)
    assert requested and {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"weights"}


def test_a_zip_is_not_unpacked(tmp_path):
    from big_vision_lite.weights import files

    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("../evil.npy", "w") as file:
        np.save(file, np.ones(3, np.float32))
    assert list(files.read_weights(str(path)).arrays) == ["../evil"]  # a name, and nothing else
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]
    assert not (tmp_path.parent / "evil.npy").exists()
