"""Studies: what they refuse, how they run, and that one which is killed ends as one that never was."""

import csv
import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from big_vision_lite import config as configs
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.commands import study as command
from big_vision_lite.data.curation import LabelNoise, NestedSubset
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop, Squash
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.scaling import cost, emit, results, runner
from big_vision_lite.scaling.study import Run, Study, load
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.transfer import Transfer

TRAINER = '''
"""Trains nothing, but leaves a run's folder as the loop does: config, checkpoints, metrics and run.json."""
import json, os, sys, time
from pathlib import Path
config, folder, pace = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
if os.environ.get("FAIL") == folder.name:
    print("bvl: no such thing"); sys.exit(2)
if os.environ.get("FAIL_ONCE") == folder.name and not (folder / "tried").exists():
    folder.mkdir(exist_ok=True); (folder / "tried").touch(); os.kill(os.getpid(), 9)
folder.mkdir(exist_ok=True)
values = json.loads(config.read_text())
init = values["transfer"]["init"]
assert init is None or "results" in json.loads((Path(init) / "run.json").read_text()), "started too early"
(folder / "config.json").write_text(config.read_text())
steps = values["steps"]
start = max([int(p.name) for p in (folder / "checkpoints").glob("[0-9]*")], default=0)
for step in range(start + 1, steps + 1):
    time.sleep(pace)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\\n")
    if step % 5 == 0:
        (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
images = values["train"]["curate"][0]["images"] if values["train"]["curate"] else 40
(folder / "data.json").write_text(json.dumps({"images": images, "classes": ["a", "b"], "fingerprint": f"f{images}"}))
scores = {"validation/mAP": 1 - 1 / images, "validation/images": 20}
if os.environ.get("NO_METRICS") == folder.name:
    scores = {}
(folder / "run.json").write_text(json.dumps({"step": steps, "versions": {"jax": "1"}, "wall_seconds": time.time() % 7,
                                             "results": scores}))
'''


def experiment(images: int = 40, init: str | None = None, steps: int = 20, **more) -> Experiment:
    def inputs(split: str, count: int, transform, curate=()) -> Input:
        return Input(EmojiScenes(split, count, size=32, classes=6), transform, 16, curate=curate)

    more = {"transfer": Transfer(init, freeze=("backbone",) if init else ()), "head": Classification(), **more}
    return Experiment(train=inputs("train", 64, PadCrop(32, pad=4), (NestedSubset(images),)),
                      evals={"validation": inputs("validation", 20, Squash(32))},
                      backbone=ResNet(10, width=1 / 16, stem="half"), optimizer=SGD(0.05), steps=steps, log_every=1,
                      save_every=5, **more)


def tiny(steps: int = 20) -> Study:
    runs = []
    for images in (20, 40):
        runs += [Run(f"frozen,{images}", experiment(64, f"run:{images}", steps)),  # listed before what it needs
                 Run(f"{images}", experiment(images, steps=steps), factors={"images": images})]
    return Study("tiny", tuple(runs))


@pytest.fixture
def trainer(tmp_path):
    """Commands for `runner.execute` that train nothing."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)

    def commands(run: Run, workdir: Path) -> list[str]:
        return [str(script), *runner.command_of(run, workdir)[2:], "0.0"]

    return commands


def read(workdir: Path) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader((workdir / "results.csv").read_text().splitlines())}


def test_runs_in_order_and_again_only_what_is_missing(tmp_path, trainer, capfd):
    study, folder = tiny(), tmp_path / "study"
    assert [run.name for run in study.ordered()] == ["20", "frozen,20", "40", "frozen,40"]
    assert runner.execute(study, folder, study.chosen("20"), "tiny.py", command=trainer) == 0
    rows = read(folder)
    assert [row["status"] for row in rows.values()] == ["missing", "done", "missing", "missing"]
    assert list(rows) == [run.name for run in study.runs]
    before = (folder / "20" / "run.json").read_text()
    assert runner.execute(study, folder, study.ordered(), command=trainer) == 0
    assert (folder / "20" / "run.json").read_text() == before
    assert "4 runs, of which 1 are done" in capfd.readouterr().out
    row = read(folder)["frozen,20"]
    expected = {"images": "20", "classes": "2", "init": "pretraining", "stage": "transfer", "frozen": "True",
                "held": "backbone", "seed": "0", "noise": "0.0", "depth": "10", "steps": "20", "images_seen": "320",
                "epochs": "5.0", "versions": "jax 1", "validation/mAP": str(1 - 1 / 64)}
    assert {name: row[name] for name in expected} == expected
    assert "wall" not in "".join(row)
    told = json.loads((folder / "study.json").read_text())
    assert told["spec"] == "tiny.py" and [run["attempts"] for run in told["runs"]] == [1] * 4
    init = json.loads((folder / "frozen,20" / "config.json").read_text())["transfer"]["init"]
    assert Path(init) == (folder / "20").resolve()
    study.check(folder.rename(tmp_path / "moved"))  # a folder may be moved


def test_goes_on_past_a_failed_run_and_tries_again(tmp_path, trainer, monkeypatch, capfd):
    study, folder = tiny(), tmp_path / "study"
    monkeypatch.setenv("FAIL", "20")
    monkeypatch.setenv("FAIL_ONCE", "40")
    assert runner.execute(study, folder, study.ordered(), command=trainer) == 1
    assert {name: row["status"] for name, row in read(folder).items()} == {
        "frozen,20": "missing", "20": "failed", "frozen,40": "done", "40": "done"}
    told = {run["name"]: run for run in json.loads((folder / "study.json").read_text())["runs"]}
    assert told["20"]["error"] == "no such thing (exit code 2)" and told["20"]["attempts"] == 2
    assert told["40"]["attempts"] == 2 and told["frozen,20"]["error"] == "not run, for it needs 20"
    out, err = capfd.readouterr()
    assert "40: attempt 1 of 2 failed: killed by SIGKILL" in out
    assert "bvl: 2 of 4 runs are missing" in err and "bvl: 20 failed: no such thing" in err
    monkeypatch.delenv("FAIL")
    monkeypatch.setenv("NO_METRICS", "frozen,20")
    assert runner.execute(study, folder, study.ordered(), command=trainer) == 1
    assert "has no metrics, though its config names validation" in capfd.readouterr().err
    assert read(folder)["20"]["status"] == "done" and read(folder)["frozen,20"]["status"] == "failed"


DRIVER = '''
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_study import runner, tiny
study = tiny({steps})
command = lambda run, workdir: [{script!r}, *runner.command_of(run, workdir)[2:], "0.02"]
sys.exit(runner.execute(study, Path({folder!r}), study.ordered(), command=command))
'''


def test_a_killed_study_ends_as_one_never_killed(tmp_path, trainer, start):
    study = tiny(25)
    assert runner.execute(study, tmp_path / "whole", study.ordered(), command=trainer) == 0
    folder = tmp_path / "broken"
    code = DRIVER.format(tests=str(Path(__file__).parent), script=str(tmp_path / "trainer.py"), folder=str(folder),
                         steps=25)
    for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, None):
        process = start([sys.executable, "-c", code])
        if signum is None:
            assert process.wait(200) == 0, process.stderr.read()
        else:
            wait_for(lambda process=process: process.poll() is not None or running(folder), 200)
            time.sleep(random.uniform(0, 0.5))
            process.send_signal(signum)
            assert process.wait(200) in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        process.communicate()
    assert (folder / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()


@pytest.fixture
def start():
    """Starts processes, none of which outlives the test; a study's run ends when the study is gone."""
    started = []

    def start(command: list[str], **environment: str) -> subprocess.Popen:
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**os.environ, **environment}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def running(folder: Path) -> bool:
    path = folder / "study.json"
    return path.is_file() and '"running"' in path.read_text()


def wait_for(what, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


STUDY_FILE = '''
import sys
sys.path.insert(0, {tests!r})
from test_study import tiny

def get_study(steps: int = 60):
    return tiny(steps)
'''


@pytest.mark.slow
def test_a_study_that_trains_is_killed_ten_times(tmp_path, start):
    """At random moments: most while a run trains, some while it starts; the study alone, or its run as well."""
    path, folder = tmp_path / "tiny.py", tmp_path / "broken"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parent)))
    code = f"import sys; from big_vision_lite.commands.study import study; sys.exit(study({[str(path), '--workdir']}"
    environment = {"JAX_NUM_CPU_DEVICES": "1", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}

    def begin(name: str) -> subprocess.Popen:
        return start([sys.executable, "-c", f"{code} + [{str(tmp_path / name)!r}]))"], **environment)

    def lines() -> int:
        return sum(len(file.read_bytes().splitlines()) for file in folder.glob("*/metrics.jsonl"))

    whole = begin("whole")
    assert whole.communicate(timeout=600) and whole.returncode == 0
    began, draw = time.monotonic(), random.Random()
    for killed in range(10):
        process = begin("broken")
        if draw.random() < 0.7:
            enough = lines() + draw.randint(1, 15)
            wait_for(lambda enough=enough: lines() >= enough, 200)
            time.sleep(draw.uniform(0, 0.5))
        else:
            time.sleep(draw.uniform(0.5, 6))
        assert process.poll() is None, f"the study had ended before it was killed {killed + 1} times"
        process.kill()
        if draw.random() < 0.5:
            subprocess.run(["pkill", "-KILL", "-f", re.escape(str(folder))])
        process.communicate()
    last = begin("broken")
    error = last.communicate(timeout=600)[1]
    assert last.returncode == 0, error
    print(f"killed 10 times in {time.monotonic() - began:.0f} s")
    assert (folder / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()


@pytest.mark.usefixtures("compile_once")
def test_the_process_of_a_run(tmp_path, capsys):
    first = dataclasses.replace(experiment(steps=2), evals={})
    later = dataclasses.replace(experiment(32, steps=2, transfer=Transfer("run:first")), evals={})  # the same program
    study = Study("real", (Run("first", first), Run("then", later)))
    runner.prepare(study, tmp_path)

    def words(name: str) -> list[str]:
        return [*runner.command_of(study[name], tmp_path)[2:], "--alone"]

    assert command.one(words("then")) == 2  # before it may
    assert "'first' holds no run" in capsys.readouterr().err.replace(f"{tmp_path.resolve()}/", "")
    assert [command.one(words(name)) for name in ("first", "then")] == [0, 0]
    assert "arrays from" in capsys.readouterr().out
    study.check(tmp_path)
    rows = {row["run"]: row for row in results.rows(study, tmp_path)}
    assert [row["status"] for row in rows.values()] == ["done"] * 2
    assert rows["first"]["images"] == 40 and rows["then"]["images"] == 40 and rows["then"]["epochs"] == 2 * 16 / 32
    assert "jax " in rows["then"]["versions"]
    assert [row["run"] for row in results.timings(study, tmp_path)] == ["first", "then"]


def test_what_a_study_refuses(tmp_path, trainer):
    one, other = experiment(), experiment(30)
    for runs, message in (
        ((), "has no runs"),
        ((Run("a", one), Run("a", other)), "two runs named 'a', with different configs: train.curate"),
        ((Run("a", one), Run("b", experiment(init="run:aa"))), "'b' comes after 'aa'.*did you mean 'a'"),
        ((Run("a", one, after=("b",)), Run("b", one, after=("a",))), "a after b after a"),
    ):
        with pytest.raises(UserError, match=message):
            Study("s", runs)
    for name in ("a/b", "..", "logs", "-x", ""):
        with pytest.raises(UserError, match="cannot be the name of a folder"):
            Run(name, one)
    study, folder = Study("s", (Run("a", one),)), tmp_path / "study"
    with pytest.raises(UserError, match=r"--only 'b.' names no run of study 's'; did you mean|valid: a"):
        study.chosen("b*")
    assert runner.execute(study, folder, study.runs, command=trainer) == 0
    with pytest.raises(UserError, match=r"run 'a' in .* was made with another config: train.curate.*remove that run"):
        runner.prepare(Study("s", (Run("a", other),)), folder)
    changed = dataclasses.replace(one, evals={"other": one.evals["validation"]})
    with pytest.raises(UserError, match="another config: evals"):
        Study("s", (Run("a", changed),)).check(folder)
    with pytest.raises(UserError, match="holds the study 's', not 't'"):
        Study("t", study.runs).check(folder)
    (folder / "a" / "run.json").write_text('{"step": 20}')
    with pytest.raises(UserError, match="stands at step 20 of 20"):
        results.figures(folder / "a", one)
    (folder / "a" / "run.json").unlink()
    with pytest.raises(UserError, match=r"holds no run, for it has no run.json"):
        results.figures(folder / "a", one)
    (folder / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*study.json"):
        study.check(folder)


def test_study_files(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parent)))
    assert load(f"{path}:steps=7").runs[0].experiment.steps == 7
    for text, message in (("x = 1", "has no function get_study"), ("def get_config(): pass", "bvl train takes"),
                          ("def get_study(): return 1", "get_study returned int, expected a Study")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load(str(path))
    with pytest.raises(UserError, match=r"no study file .*did you mean.*tiny.py"):
        load(str(tmp_path / "tinny.py"))


def test_factors_of_transfers_are_those_of_pretraining():
    noisy = experiment(20)
    noisy = dataclasses.replace(noisy, seed=3, train=dataclasses.replace(
        noisy.train, curate=(NestedSubset(20), LabelNoise(0.6))))
    study = Study("s", (Run("a", noisy, factors={"images": 20}), Run("b", experiment(64, "run:a"))))
    assert study.factors(study["b"]) == {
        "depth": 10, "seed": 0, "noise": 0.4, "frozen": True, "init": "pretraining", "head": "Classification",
        "stage": "transfer", "images": 20}


def test_cost_counts_operations():
    one = experiment()
    # Stem 3x3x3x4 on 16x16, then by hand for the first block: two 3x3x4x4 on 16x16.
    assert cost.operations(one) > 20 * 16 * 3 * 2 * (16 * 16 * 27 * 4 + 2 * 16 * 16 * 9 * 16)
    assert cost.operations(experiment(steps=40)) == 2 * cost.operations(one)
    assert cost.operations(experiment(init="run:a")) == pytest.approx(cost.operations(one) / 3)
    assert cost.seconds(experiment(steps=40), [(one, cost.START_SECONDS + 10)]) == (cost.START_SECONDS + 20, True)
    assert not cost.seconds(one, [])[1]


def test_list_and_collect(tmp_path, trainer, capsys, monkeypatch):
    path = tmp_path / "tiny.py"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parent)))
    folder = tmp_path / "study"
    assert command.study([str(path), "--workdir", str(folder), "--list", "--only", "frozen*"]) == 0
    said = capsys.readouterr().out
    assert not folder.exists() and "frozen,20" in said and "by an assumed speed" in said
    assert [line.split()[0] for line in said.splitlines()[1:5]] == ["20", "frozen,20", "40", "frozen,40"]
    study = load(str(path))
    assert runner.execute(study, folder, study.chosen("20"), command=trainer) == 0
    (folder / "results.csv").unlink()
    capsys.readouterr()
    assert command.study([str(path), "--workdir", str(folder), "--collect"]) == 0
    assert "1 of 4 runs are done" in capsys.readouterr().out and read(folder)["20"]["status"] == "done"


@pytest.mark.parametrize("kind", ["shell", "slurm", "skypilot"])
def test_jobs(tmp_path, kind):
    study, folder = Study("tiny", tiny().runs[:2]), tmp_path / "a study's folder; $(touch x)"
    runner.prepare(study, folder)
    script = emit.write(folder, study.ordered(), kind, accelerators="H100:1", storage="gs://bucket/a",
                        python=sys.executable)
    jobs = sorted(path for path in (folder / "jobs").iterdir() if path != script)
    assert len(jobs) == 2
    shells = [script] if kind == "skypilot" else [script, *jobs]
    for path in shells:
        subprocess.run(["bash", "-n", str(path)], check=True)
    fakes, log = tmp_path / "bin", tmp_path / "called"
    fakes.mkdir()
    for name, body in (("sbatch", "echo $RANDOM"), ("sky", "true"), ("gcloud", "true"),
                       ("srun", 'exit "$CODE"'), ("scontrol", "true")):
        (fakes / name).write_text(f'#!/bin/bash\nprintf "%s|" "$@" >> "{log}"; echo >> "{log}"; {body}\n')
        (fakes / name).chmod(0o755)
    if kind == "shell":
        environment = {**os.environ, "JAX_PLATFORMS": "none"}
        assert subprocess.run(["bash", str(script)], env=environment, cwd=tmp_path).returncode == 1  # no such platform
        assert "JAX finds no device" in (folder / "logs" / "20.txt").read_text()
    else:
        subprocess.run(["bash", str(script)], check=True, cwd=tmp_path,
                       env={**os.environ, "PATH": f"{fakes}:{os.environ['PATH']}"})
        calls = log.read_text().splitlines()
        if kind == "skypilot":
            assert calls.pop(0) == f"storage|rsync|--recursive|{folder.resolve()}|gs://bucket/a|"
        assert len(calls) == 2
        if kind == "slurm":
            for code, restarts, again in ((1, 0, False), (75, 19, True), (75, 20, False), (143, 99, True)):
                given = {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_ID": "7"}
                ran = subprocess.run(["bash", str(jobs[0])], cwd=tmp_path,
                                     env={**os.environ, **given, "PATH": f"{fakes}:{os.environ['PATH']}"})
                assert ran.returncode == code
                assert (log.read_text().splitlines()[-1] == "requeue|7|") == again
            assert sum("--dependency=afterok:" in call for call in calls) == 1
            assert all(str(folder.resolve()) in call for call in calls)
            assert "#SBATCH --gres=gpu:H100:1\n" in jobs[0].read_text()
        else:
            assert {call.split("|")[4] for call in calls} == {"20", "frozen-20"}
            task = yaml.safe_load(jobs[0].read_text())
            assert task["file_mounts"] == {str(folder.resolve()): {"source": "gs://bucket/a", "mode": "MOUNT"}}
            assert task["resources"] == {"accelerators": "H100:1", "use_spot": True}
            words = shlex.split(task["run"])
            assert task["workdir"] == "." and "~/bvl/bin/python .'[gpu]'" in task["setup"]
            assert words[:2] == ["exec", "~/bvl/bin/python"]
            assert any(word.startswith(str(folder.resolve())) for word in words)
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="--accelerators 'a b' is no such name"):
        emit.write(folder, study.runs, kind, accelerators="a b")
    with pytest.raises(UserError, match="--storage None; jobs of SkyPilot run on machines that do not have"):
        emit.write(folder, study.runs, "skypilot")
    with pytest.raises(UserError, match=r"--workdir gs://\.\.\.: a study's folder must be on a disk"):
        command.study(["configs/studies/quickstart.py", "--workdir", "gs://bucket/study", "--list"])


def test_resolved_configs_hold_all_that_a_job_needs(tmp_path):
    study = tiny()
    runner.prepare(study, tmp_path)
    kept = configs.read(tmp_path / "configs" / "frozen,40.json")
    assert kept == study.experiment(study["frozen,40"], tmp_path)
    assert kept.transfer.init == str((tmp_path / "40").resolve())
