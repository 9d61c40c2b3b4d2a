"""Configs: arguments by their types, JSON that comes back equal, what JSON may not make, typing mistakes."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tyro

from big_vision_lite import config
from big_vision_lite.commands.arguments import parse
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import WITHOUT_EFFECT, Experiment

REPOSITORY = Path(__file__).parent.parent
IMAGE_FOLDER = REPOSITORY / "configs" / "image_folder.py"

ARGUMENTS = """
from __future__ import annotations
from typing import Literal

def get_config(name: str, depth: int | None = 50, flip: bool = True, area: tuple[float, ...] = (0.1, 1.0),
               kind: Literal["small", 8] = "small", rate: float | str = 1.0, free="x"):
    return dict(name=name, depth=depth, flip=flip, area=area, kind=kind, rate=rate, free=free)
"""


@pytest.fixture
def arguments(tmp_path) -> Path:
    path = tmp_path / "arguments.py"
    path.write_text(ARGUMENTS)
    return path


@pytest.fixture
def experiment() -> Experiment:
    return config.load(f"{IMAGE_FOLDER}:root=/photos,size=64,depth=50,steps=100")


def test_arguments_are_read_by_their_types(arguments):
    defaults = {"depth": 50, "flip": True, "area": (0.1, 1.0), "kind": "small", "rate": 1.0, "free": "x"}
    assert config.load(f"{arguments}:name=a") == {"name": "a", **defaults}
    # A comma ends a value only where "word=" follows: lists and paths keep theirs.
    given = "name=/a,b/c=d, depth=none,flip=False,area=(0.2,0.5),kind=8,rate=adaptive,free=7"
    read = config.load(f"{arguments}:{given}")
    assert read == {"name": "/a,b/c=d", "depth": None, "flip": False, "area": (0.2, 0.5), "kind": 8,
                    "rate": "adaptive", "free": "7"}
    assert type(read["kind"]) is int
    read = config.load(f"{arguments}:name=a,depth=18,rate=1e-3")
    assert read == {"name": "a", **defaults, "depth": 18, "rate": 1e-3}


@pytest.mark.parametrize(("given", "message"), [
    ("name=a,dept=3", "no argument 'dept'; did you mean 'depth'?"),
    ("name=a,depth=3.5", "depth='3.5' is not int | None"),
    ("name=a,flip=yes", "flip='yes' is not bool"),
    ("name=a,area=0.1,wide", "area='0.1,wide' is not tuple[float, ...]"),
    ("name=a,kind=smal", "kind='smal' is not"),
    ("depth=3", "needs name=..."),
    ("depth", "'depth' has no value; expected argument=value"),
])
def test_wrong_arguments_are_named(arguments, given, message):
    with pytest.raises(UserError) as raised:
        config.load(f"{arguments}:{given}")
    assert message in str(raised.value) and str(arguments) in str(raised.value)


def test_wrong_files_are_named(arguments):
    with pytest.raises(UserError, match=r"no config file .*argumnets\.py.* did you mean .*arguments\.py"):
        config.load(str(arguments.with_name("argumnets.py")))
    arguments.write_text("get_experiment = None")
    with pytest.raises(UserError, match="has no function get_config"):
        config.load(str(arguments))


def test_json_comes_back_equal(experiment):
    evals = {**experiment.evals, "class": experiment.train}  # a name that JSON gives a meaning of its own
    for original in (experiment, dataclasses.replace(experiment, evals=evals, ema=0.999)):
        tree = json.loads(json.dumps(config.to_json(original)))
        again = config.from_json(tree)
        assert again == original and config.to_json(again) == tree
        assert isinstance(again.train.transform.area, tuple)


@pytest.mark.parametrize(("tree", "message"), [
    ({"class": "os:system"}, "outside big_vision_lite"),
    ({"class": "collections:OrderedDict"}, "outside big_vision_lite"),
    ({"class": "big_vision_lite_evil.run:Thing"}, "outside big_vision_lite"),
    ({"class": "big_vision_lite.cli:main"}, "not a dataclass"),
    ({"class": "big_vision_lite.errors:UserError"}, "not a dataclass"),
    ({"class": "big_vision_lite.config:importlib.import_module"}, "not a dataclass"),
    ({"class": "big_vision_lite.experiment:Mesh"}, "not a dataclass of its module"),  # imported there
    ({"class": "big_vision_lite.experiment:Experimnt"}, "there is no"),
    ({"class": "big_vision_lite.training.mesh:Mesh", "fdsp": 2}, "no field 'fdsp'; did you mean 'fsdp'?"),
    ({"class": "big_vision_lite.experiment:Experiment", "steps": 3}, "needs 'train'"),
])
def test_json_makes_only_known_dataclasses(tree, message):
    with pytest.raises(UserError, match="config: ") as raised:
        config.from_json({"steps": [tree]})
    assert message in str(raised.value)


def test_reading_a_run_never_runs_its_config(tmp_path, monkeypatch):
    """A class of a config file can be saved; reading imports nothing that the caller did not allow."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_parts.py").write_text(textwrap.dedent("""
        import dataclasses, pathlib
        pathlib.Path(__file__).with_suffix(".ran").touch()

        @dataclasses.dataclass(frozen=True)
        class Part:
            sizes: tuple[int, ...] = (1, 2)
    """))
    path, ran = tmp_path / "config.json", tmp_path / "my_parts.ran"
    path.write_text('{"class": "my_parts:Part", "sizes": [3]}')
    with pytest.raises(UserError, match="allow its module with --import my_parts"):
        config.read(path)
    assert not ran.exists()
    part = config.read(path, allowed=["my_parts"])
    assert ran.exists() and part.sizes == (3,) and part == sys.modules["my_parts"].Part((3,))


@pytest.mark.parametrize("text", ["", '{"class": "big_vision_lite', "\xff"])
def test_a_cut_file_is_an_error_of_one_line(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="not valid JSON"):
        config.read(path)
    for nowhere in (tmp_path / "none" / "config.json", path / "config.json"):
        with pytest.raises(UserError, match="a run folder holds one"):
            config.read(nowhere)


def test_differences_name_fields(experiment):
    changed = dataclasses.replace(
        experiment, steps=200, eval_every=7, evals={},
        train=dataclasses.replace(experiment.train, workers=3, batch_size=64))
    old, new = config.to_json(experiment), config.to_json(changed)
    assert config.differences(old, old) == []
    expected = ["train.batch_size: 128 -> 64", "steps: 100 -> 200"]
    assert config.differences(old, new, WITHOUT_EFFECT) == expected
    assert "train.workers: 0 -> 3" in config.differences(old, new)
    assert config.differences({"a": {"class": "m:A", "x": 1}}, {"a": {"class": "m:B", "x": 1}}) == \
        ['a.class: "m:A" -> "m:B"']


def bvl(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "big_vision_lite", *arguments], cwd=REPOSITORY, text=True,
                          capture_output=True, timeout=60)


def test_config_show_prints_what_is_run():
    shown = bvl("config", "show", "configs/image_folder.py:root=/photos,steps=100", "--train.batch-size=64")
    assert shown.returncode == 0, shown.stderr
    expected = config.load(f"{IMAGE_FOLDER}:root=/photos,steps=100")
    expected = dataclasses.replace(expected, train=dataclasses.replace(expected.train, batch_size=64))
    assert config.from_json(json.loads(shown.stdout)) == expected


@pytest.mark.parametrize(("arguments", "near"), [
    (["train", "configs/image_folder.py:root=/photos", "--optimizer.learning-rat=3"],
     "--optimizer.learning-rate"),
    (["train", "configs/image_folder.py:root=/photos,dept=18"], "'depth'"),
    (["train", "configs/image_fodler.py:root=/photos"], "'configs/image_folder.py'"),
])
def test_typing_mistakes_end_at_once(arguments, near):
    ended = bvl(*arguments)  # that little is imported until then, test_imports tells
    assert ended.returncode == 2 and near in ended.stderr and "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "bvl: how much"),
    (["train", "--help"], "bvl train CONFIG --help lists"),
    (["study", "-h"], "bvl study STUDY --help lists"),
    (["trian"], "bvl: no command 'trian'; did you mean 'train'?"),
    (["train"], "bvl: bvl train needs a config"),
    (["config", "shwo"], "bvl: expected: bvl config show"),
])
def test_commands(arguments, message, capsys):
    from big_vision_lite.cli import main

    assert main(arguments) == (2 if message.startswith("bvl: ") and arguments else 0)
    assert message in "".join(capsys.readouterr())


def test_sources_parsed_by_two_threads_at_once(monkeypatch):
    """Before CPython 3.11.8, `ast.parse` fails when another thread parses too; tyro reads the sources of a config."""
    cli, failed = tyro.cli, []

    def disturbed(*args, **kwargs):
        if not failed:
            failed.append(True)
            raise SystemError("AST constructor recursion depth mismatch (before=219, after=17)")
        return cli(*args, **kwargs)

    @dataclasses.dataclass(frozen=True)
    class Options:
        steps: int = 1

    monkeypatch.setattr(tyro, "cli", disturbed)
    assert parse(Options, ["--steps", "2"], "bvl").steps == 2 and failed
