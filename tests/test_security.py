"""What comes from elsewhere, files, archives and names, can neither run code nor write outside its folder."""

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

PACKAGE = Path(big_vision_lite.__file__).parent

OWN_PROCESSES = {
    ("data/prepare.py", "pickle.load"),  # a file of its own, for the workers it starts itself, gone when they are done
    ("bench/contenders.py", "pickle.load"),  # the same: from the process that measures to the one that it measures
}
"""Pickles that never leave the command that wrote them: what Python's own workers exchange, too, are pickles."""
ALWAYS_WRONG = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "eval", "exec",
    "os.system", "os.popen", "shutil.unpack_archive",
}


def loading(path):
    """Calls in a file that may run what they read, with their arguments by name."""
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
    found = {(str(path.relative_to(PACKAGE)), name) for path in PACKAGE.rglob("*.py") for name in loading(path)}
    assert found == OWN_PROCESSES
    wrong = tmp_path / "wrong.py"
    wrong.write_text("pickle.loads(b)\nnp.load(f, allow_pickle=True)\ntorch.load(f)\ntar.extractall()\n"
                     "run(c, shell=True)")
    assert sum(1 for _ in loading(wrong)) == 5  # the test can fail


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_the_place_of_weights(tmp_path):
    from big_vision_lite.weights import files

    trap, sprung = tmp_path / "weights.npz", tmp_path / "sprung"
    np.savez(trap, a=np.array([Trap(sprung)], dtype=object))
    with pytest.raises(UserError):
        files.read_file(trap)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError):
        files.read_file(bare)
    assert not sprung.exists()


def test_a_config_names_only_dataclasses(tmp_path):
    for name in ("os:system", "pathlib:Path", "big_vision_lite.config:Path", "big_vision_lite.cli:main"):
        with pytest.raises(UserError):
            config.from_json({"class": name, "command": "true"})


@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "cat/../../evil.jpg"])
def test_an_archive_is_read_where_it_stands(tmp_path, name):
    from big_vision_lite.data.tar_images import TarImages

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
        records = TarImages(str(folder)).open()
        assert [len(example["image"]) for example in map(records.__getitem__, range(len(records)))]
    except UserError as error:
        assert "evil" in str(error)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(folder)} == before
    assert not Path("/tmp/evil.jpg").exists() and not (Path.cwd() / "evil.jpg").exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "..", "/evil"])
def test_weights_with_a_name_that_leads_elsewhere(tmp_path, monkeypatch, name):
    asked = []

    def stand_in(url, part, expected, target):
        asked.append(url)
        target.write_bytes(b"")

    monkeypatch.setattr(download, "_download", stand_in)
    cache = tmp_path / "cache"
    for source in (f"hf:{name}/x.npz", f"hf:me/mine/{name}/x.npz", f"https://host/{name}/..%2f..%2fx.npz",
                   f"https://host/{name}/..\\x.npz"):
        try:
            assert download.fetch(source, cache).parent == cache
        except UserError:
            continue
    assert asked and {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert all(path.is_file() for path in cache.iterdir())


def test_a_zip_is_not_unpacked(tmp_path):
    from big_vision_lite.weights import files

    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("../evil.npy", "w") as file:
        np.save(file, np.ones(3, np.float32))
    assert list(files.read_file(path)) == ["../evil"]  # a name, and nothing else
    assert {found.name for found in tmp_path.iterdir()} == {"weights.npz"}
    assert not (tmp_path.parent / "evil.npy").exists()
