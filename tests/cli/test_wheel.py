"""The wheel, built and used in an empty folder: its configs are found by name, trained, and copied to be edited."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from big_vision_lite import config
from big_vision_lite.cli import main
from big_vision_lite.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the contents of the wheel."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place], cwd=REPOSITORY, check=True,
                   capture_output=True)
    wheel, = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


def test_the_wheel_in_an_empty_folder(installed, tmp_path):
    def bvl(*arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(installed), "TFDS_DATA_DIR": str(tmp_path / "data")}
        done = subprocess.run([sys.executable, "-m", "big_vision_lite", *arguments], cwd=tmp_path / "empty", env=env,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "empty").mkdir()
    where = [sys.executable, "-c", "import big_vision_lite as b; print(b.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(installed)
    shipped = {path.relative_to(installed / "big_vision_lite" / "configs") for path in
               (installed / "big_vision_lite" / "configs").rglob("*.*") if path.suffix != ".pyc"}
    assert shipped == {path.relative_to(REPOSITORY / "configs") for path in (REPOSITORY / "configs").rglob("*.*")
                       if path.suffix != ".pyc"}
    listed = bvl("config", "list")
    assert "bvl train quickstart\n" in listed and "bvl study studies/photos\n" in listed
    assert bvl("config", "copy", "quickstart", ".") == "quickstart.py\n"
    # A batch of 8 images of two classes: compiled in seconds, and all else is the quick start.
    bvl("train", "quickstart:images=80,classes=2,batch_size=8", "--steps", "20", "--backbone.width", "0.0625")
    run = tmp_path / "empty" / "runs" / "quickstart"
    assert json.loads((run / "run.json").read_text())["step"] == 20 and (run / "predictions.png").is_file()


def test_names_of_configs(tmp_path, monkeypatch):
    """The file of a name, wherever the command runs; a file of one's own comes first."""
    known = REPOSITORY / "configs"
    monkeypatch.chdir(tmp_path)
    assert config.find_file("quickstart:depth=18") == (known / "quickstart.py", "depth=18")
    assert config.find_file("configs/quickstart.py:depth=18") == (known / "quickstart.py", "depth=18")
    assert config.find_file("quickstart", "study")[0] == known / "studies" / "quickstart.py"
    assert config.find_file("coco_keypoints")[0] == known / "transfer" / "coco_keypoints.py"
    assert config.find_file("coco_keypoints", "study")[0] == known / "paper" / "coco_keypoints.py"
    assert config.find_file("tfds")[0] == known / "tfds.py"
    for name in ("quikstart", "../configs/quickstart", "studies", "clusters/slurm.toml"):
        with pytest.raises(UserError, match="no config file"):
            config.find_file(name)
    with pytest.raises(UserError, match=r"'quikstart\.py'; did you mean .*'configs/quickstart\.py'"):
        config.find_file("quikstart")
    (tmp_path / "quickstart.py").write_text("def get_config():\n    return 7\n")
    assert config.load("quickstart") == 7


def test_copies_of_configs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = REPOSITORY / "configs"
    for name, to, new, original in (("vtab", ".", "vtab.py", "transfer/vtab.py"),
                                    ("configs/quickstart.py", "mine.py", "mine.py", "quickstart.py"),
                                    ("clusters/slurm.toml", ".", "slurm.toml", "clusters/slurm.toml")):
        assert main(["config", "copy", name, to]) == 0 and capsys.readouterr().out == f"{new}\n"
        assert (tmp_path / new).read_bytes() == (known / original).read_bytes()
    for arguments, message in ((("vtab",), "there is a file 'vtab.py' already; copy to another name: bvl config copy "
                                           "vtab my_vtab.py\n"),
                               (("vtabb",), "no config 'vtabb' comes with this package; did you mean 'vtab'"),
                               (("quickstart", "nowhere/x.py"), "'nowhere/x.py'")):
        assert main(["config", "copy", *arguments]) == 2
        assert message in (error := capsys.readouterr().err) and error.count("\n") == 1
