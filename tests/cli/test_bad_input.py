"""Bad input and failing machines: one line that names the cause, code 2, nothing half-written."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vision_lite import config
from big_vision_lite.cli import main
from big_vision_lite.commands.setup import set_up_jax
from big_vision_lite.errors import UserError
from big_vision_lite.training.checkpoints import Checkpoints
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.metrics import MetricWriter, read_metrics, read_run
from big_vision_lite.training.progress import Display

CONFIG = Path(__file__).parents[2] / "configs" / "image_folder.py"


pytestmark = pytest.mark.usefixtures("compile_once")


def make_photos(root: Path) -> Path:
    for split, images in (("train", 8), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = np.random.default_rng(2 * i + label).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_photos(tmp_path / "photos")


def train(root: Path, workdir: Path, *overrides: str, batch_size: int = 8) -> list[str]:
    spec = f"{CONFIG}:root={root},size=16,steps=2,batch_size={batch_size},width=0.0625"
    return ["train", spec, "--save-every=1", f"--workdir={workdir}", *overrides]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """Photos and a finished run on them. Tests that change the run take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    photos, run = make_photos(folder / "photos"), folder / "run"
    assert main(train(photos, run)) == 0
    return photos, run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished[1], tmp_path / "run")


@pytest.fixture
def refused(capsys):
    """Runs a command that must end with code 2 and one line on stderr, and returns the line."""
    def check(arguments: list[str]) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("bvl: ") and error.count("\n") == 1, error
        return error
    return check


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def remove_split(root: Path) -> None:
    shutil.rmtree(root / "val")


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def empty_class(root: Path) -> None:
    (root / "train" / "emu").mkdir()


def class_only_in_val(root: Path) -> None:
    shutil.copytree(root / "val" / "cat", root / "val" / "dgo")


@pytest.mark.parametrize(("spoil", "message"), [
    (shutil.rmtree, "photos', not a folder"),
    (remove_split, "has no split 'val'"),
    (empty, "is empty; expected one folder per class"),
    (empty_class, "train/emu' has no images"),
    (class_only_in_val, "class 'dgo' is in"),
])
def test_a_folder_that_cannot_be_trained_on(photos, tmp_path, refused, spoil, message):
    spoil(photos)
    workdir = tmp_path / "run"
    assert message in refused(train(photos, workdir))
    assert not workdir.exists()  # so that the corrected command can use it


def test_a_batch_that_does_not_divide(photos, tmp_path, refused):
    devices = jax.device_count()
    if devices == 1:
        pytest.skip("every batch divides over one device")
    line = refused(train(photos, tmp_path / "run", batch_size=devices + 1))
    assert f"batch_size={devices + 1} does not divide over {devices} devices" in line
    assert "; the nearest that does is " in line and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=f"fsdp={devices + 1} with {devices} devices"):
        Mesh(fsdp=devices + 1).build()


@pytest.mark.parametrize(("owner", "method"), [(Display, "step"), (MetricWriter, "write"), (Checkpoints, "save")])
def test_a_signal_at_any_line_leaves_a_step_that_is_saved(photos, tmp_path, monkeypatch, capsys, owner, method):
    for i in range(8):
        (photos / "train" / "cat" / f"{i}.jpg").write_bytes(b"cut")
    workdir = tmp_path / "run"
    at_saves = method == "save"  # the others are called at each step
    command = [f"--save-every={5 if at_saves else 100}" if a.startswith("--save-every") else a
               for a in (*train(photos, workdir), "--steps=12", "--log-every=1")]
    original, calls = getattr(owner, method), []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == (1 if at_saves else 3):
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupted)
        assert main(command) == 128 + signal.SIGTERM
    stopped = int(capsys.readouterr().err.split("after step ")[1].split(",")[0])
    reader = Checkpoints(workdir / "checkpoints")
    assert reader.latest() == stopped < 12
    reader.close()
    assert main(command) == 0
    assert f"going on from step {stopped}" in capsys.readouterr().out
    bad = [line["bad_images"] for line in read_metrics(workdir / "metrics.jsonl") if "bad_images" in line]
    assert bad == sorted(bad) and bad[-1] == read_run(workdir)["bad_images"] == 12 // 2 * 8  # as if never interrupted


def test_an_image_that_is_cut(photos, tmp_path, refused):
    cut = photos / "train" / "dog" / "3.jpg"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    strict, lenient = tmp_path / "strict", tmp_path / "lenient"
    command = train(photos, strict, "--train.on-bad-image=raise")
    assert "image 'train/dog/3.jpg' cannot be read" in refused(command)

    assert main(train(photos, lenient)) == 0  # the config's own policy is "mask"
    counts = [line["bad_images"] for line in read_metrics(lenient / "metrics.jsonl") if "bad_images" in line]
    assert counts == [1] and read_run(lenient)["bad_images"] == 1  # two steps of 8 are one epoch of 16

    cut.write_bytes(whole)
    line = refused(command)  # the run began on other content
    assert "was trained on other data" in line and f"remove {strict / 'data.json'} and start the same command" in line
    (strict / "data.json").unlink()
    assert main(command) == 0  # resumes from the last checkpoint
    assert [line["step"] for line in read_metrics(strict / "metrics.jsonl")] == [1, 2, 2]


def test_a_workdir_that_is_not_writable(photos, tmp_path, refused):
    workdir = tmp_path / "run"
    workdir.write_text("a file")
    assert "cannot write to the workdir" in refused(train(photos, workdir))
    assert "cannot write to the workdir" in refused(train(photos, workdir / "below"))
    assert workdir.read_text() == "a file"


def test_a_workdir_of_another_experiment(finished, run, refused):
    before = files(run)
    line = refused(train(finished[0], run, "--optimizer.learning-rate=0.5", "--seed=3", "--max-checkpoints=1"))
    assert "holds a run of another experiment: optimizer.learning_rate: 0.00625 -> 0.5; seed: 0 -> 3;" in line
    assert files(run) == before


def test_a_run_whose_data_has_changed(photos, tmp_path, finished, refused):
    shutil.copytree(finished[1], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(str(finished[0]), str(photos)))
    shutil.copy(photos / "train" / "cat" / "1.jpg", photos / "train" / "cat" / "99.jpg")
    line = refused(train(photos, tmp_path / "run"))
    assert "was trained on other data: 16 images" in line and "now 17" in line


def test_a_finished_run_says_so(finished, run, capsys):
    before, results = (run / "metrics.jsonl").read_bytes(), read_run(run)["results"]
    assert main(train(finished[0], run)) == 0
    assert "all 2 steps were done before; nothing is left to train" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before and read_run(run)["results"] == results
    assert main(["evaluate", str(run)]) == 0  # and from its folder alone, with equal metrics
    again = json.loads(capsys.readouterr().out)
    assert 0 <= again.pop("val/ece") <= 1  # of evaluations by themselves only
    assert again == {"step": 2, **results}


def test_a_loss_that_is_not_finite(photos, tmp_path, refused):
    line = refused(train(photos, tmp_path / "scored", "--optimizer.learning-rate=1e30"))
    assert "evaluation val at step 1: " in line and "NaN" in line and "no checkpoint was saved yet" in line
    line = refused(train(photos, tmp_path / "run", "--optimizer.learning-rate=1e30", "--eval-every=2"))
    assert " at step 2; the checkpoint of step 1 is kept; lower --optimizer.learning-rate" in line
    assert line.startswith(("bvl: loss is", "bvl: grad_norm is"))
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1]


def test_a_checkpoint_of_another_network(run, refused):
    path = run / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"width": 0.0625', '"width": 0.125'))
    line = refused(["evaluate", str(run)])
    assert "checkpoints/2: 'params." in line and "has shape" in line and "another architecture" in line
    path.write_text(text.replace('"depth": 10', '"depth": 18'))
    line = refused(["evaluate", str(run)])
    assert "checkpoints/2 has no 'params." in line and "another architecture" in line


def test_a_checkpoint_names_the_first_leaf_that_differs(tmp_path):
    state = {"params": {"a": jnp.zeros((2, 3)), "b": {"kernel": jnp.ones(4)}}, "step": jnp.int32(5)}
    checkpoints = Checkpoints(tmp_path / "checkpoints", max_checkpoints=2)
    checkpoints.save(5, state, {}, {"step": 5, "bad_images": 2})
    checkpoints.wait()
    checkpoints.close()
    for reader in (Checkpoints(tmp_path / "checkpoints"), Checkpoints(tmp_path / "checkpoints", max_checkpoints=2)):
        restored, data = reader.restore(5, state)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert data == {"step": 5, "bad_images": 2}
        wider = {**state, "params": {**state["params"], "b": {"kernel": jnp.ones(8)}}}
        with pytest.raises(UserError, match=r"'params.b.kernel' has shape \(4,\), this .* needs \(8,\)"):
            reader.restore(5, wider)
        with pytest.raises(UserError, match=r"has no 'average', which this experiment needs"):
            reader.restore(5, {**state, "average": jnp.ones(1)})
        with pytest.raises(UserError, match=r"holds 'params.b.kernel' \(1 such\)"):
            reader.restore(5, {**state, "params": {"a": state["params"]["a"]}})
        reader.close()


def test_evaluating_something_else_than_a_run(finished, run, tmp_path, refused):
    assert "nowhere/config.json: No such file or directory; a run folder holds one" in refused(
        ["evaluate", str(tmp_path / "nowhere")])
    assert "a run folder holds one" in refused(["evaluate", str(run / "metrics.jsonl")])
    assert "no checkpoint of step 7; it has 1, 2" in refused(["evaluate", str(run), "--checkpoint=7"])
    assert "has no split 'vla'; did you mean 'val'?" in refused(["evaluate", str(run), "--split=vla"])
    assert "--import no_such_module" in refused(["evaluate", str(run), "--import", "no_such_module"])
    shutil.rmtree(run / "checkpoints" / "1")
    shutil.rmtree(run / "checkpoints" / "2")
    assert "no complete checkpoint yet" in refused(["evaluate", str(run)])
    (run / "data.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert "no checkpoints in" in refused(["evaluate", str(run)])


DISK_FULL = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from big_vision_lite.errors import UserError
from big_vision_lite.training.checkpoints import Checkpoints

folder = Path(sys.argv[1])
state = {"params": jax.random.normal(jax.random.key(0), (1000, 1000))}
checkpoints = Checkpoints(folder, max_checkpoints=2)
checkpoints.save(1, state, {}, {})
checkpoints.wait()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # larger writes fail, as on a full disk
try:
    checkpoints.save(2, {"params": state["params"] + 1}, {}, {})
    checkpoints.wait()
except UserError as error:
    print(error)
checkpoints.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
again = Checkpoints(folder, max_checkpoints=2)
print(again.steps(), bool((again.restore(1, state)[0]["params"] == state["params"]).all()))
again.save(2, state, {}, {})
again.wait()
print(again.steps())
"""


def test_a_disk_that_is_full(tmp_path):
    """In its own process: the limit on the size of files holds for the whole process."""
    done = subprocess.run([sys.executable, "-c", DISK_FULL, str(tmp_path / "checkpoints")], text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr  # nothing but our line
    error, before, after = done.stdout.splitlines()
    assert error == (f"cannot save a checkpoint in '{tmp_path}/checkpoints': File too large; the checkpoint of step 1 "
                     "is kept; free some space and start the same command again")
    assert before == "[1] True" and after == "[1, 2]"  # the failed save does not prevent the next


def test_a_second_command_in_one_process_keeps_its_devices(finished, monkeypatch):
    devices = jax.devices()
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    set_up_jax(config.read(finished[1] / "config.json"))
    assert jax.devices() == devices
