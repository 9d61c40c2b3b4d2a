"""Studies: what they refuse, how they run, and that one which is killed ends like one that never was."""

import csv
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_studies import TRAINER, small_experiment, small_study

from big_vision_lite import config as configs
from big_vision_lite.commands import study as command
from big_vision_lite.commands.study_run import train_one
from big_vision_lite.data.curation.steps import LabelNoise, NestedSubset
from big_vision_lite.errors import UserError
from big_vision_lite.scaling.studies import cost, results, runner
from big_vision_lite.scaling.studies.study import Run, Study, load_study
from big_vision_lite.system.ownership import own
from big_vision_lite.training.transfer import Branch, Transfer


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
    study, folder = small_study(), tmp_path / "study"
    assert [run.name for run in study.ordered()] == ["20", "frozen,20", "40", "frozen,40"]
    assert runner.execute(study, folder, study.select("20"), "small.py", command=trainer) == 0
    rows = read(folder)
    assert [row["status"] for row in rows.values()] == ["missing", "done", "missing", "missing"]
    assert list(rows) == [run.name for run in study.runs]
    before = (folder / "20" / "run.json").read_text()
    assert runner.execute(study, folder, study.ordered(), command=trainer) == 0
    assert (folder / "20" / "run.json").read_text() == before
    assert "study small, 1 of 4 runs done" in capfd.readouterr().out
    row = read(folder)["frozen,20"]
    expected = {"images": "20", "classes": "2", "init": "pretraining", "stage": "transfer", "frozen": "True",
                "frozen_summary": "backbone", "seed": "0", "noise": "0.0", "depth": "10", "steps": "20",
                "images_seen": "320", "epochs": "5.0", "versions": "jax 1", "main_metric": "validation/mAP",
                "direction": "higher", "unit": "", "validation/mAP": str(1 - 1 / 64)}
    assert {name: row[name] for name in expected} == expected
    assert "wall" not in "".join(row)
    saved = json.loads((folder / "study.json").read_text())
    assert saved["spec"] == "small.py" and [run["attempts"] for run in saved["runs"]] == [1] * 4
    init = json.loads((folder / "frozen,20" / "config.json").read_text())["transfer"]["init"]
    assert Path(init) == (folder / "20").resolve()
    study.check(folder.rename(tmp_path / "moved"))  # a folder may be moved


def test_continues_after_a_failed_run_and_retries_it(tmp_path, trainer, monkeypatch, capfd):
    study, folder = small_study(), tmp_path / "study"
    monkeypatch.setenv("FAIL", "20")
    monkeypatch.setenv("FAIL_ONCE", "40")
    assert runner.execute(study, folder, study.ordered(), command=trainer) == 1
    assert {name: row["status"] for name, row in read(folder).items()} == {
        "frozen,20": "missing", "20": "failed", "frozen,40": "done", "40": "done"}
    states = {run["name"]: run for run in json.loads((folder / "study.json").read_text())["runs"]}
    assert states["20"]["error"] == "no such thing (exit code 2)" and states["20"]["attempts"] == 2
    assert states["40"]["attempts"] == 2 and states["frozen,20"]["error"] == "skipped: it needs 20"
    out, err = capfd.readouterr()
    assert "40: attempt 1 of 2 failed: killed by SIGKILL" in out
    assert "bvl: 2 of 4 runs are missing" in err and "bvl: 20 failed: no such thing" in err
    monkeypatch.delenv("FAIL")
    monkeypatch.setenv("NO_METRICS", "frozen,20")
    assert runner.execute(study, folder, study.ordered(), command=trainer) == 1
    assert "has no metrics, though its config names validation" in capfd.readouterr().err
    assert read(folder)["20"]["status"] == "done" and read(folder)["frozen,20"]["status"] == "failed"


def test_a_folder_has_one_study(tmp_path, trainer, capsys):
    """Not even its results are gathered meanwhile: study.json would say that nothing runs."""
    path, folder = tmp_path / "small.py", tmp_path / "study"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parents[1])))
    study = small_study()
    with own(folder):
        with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on"):
            runner.execute(study, folder, study.ordered(), command=trainer)
        with pytest.raises(UserError, match="is in use by"):
            command.study([str(path), "--workdir", str(folder), "--gather"])
    assert not list(folder.iterdir())


DRIVER = '''
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from big_vision_lite.scaling.studies import runner
from small_studies import small_study
study = small_study({steps})
command = lambda run, workdir: [{script!r}, *runner.command_of(run, workdir)[2:], "0.02"]
sys.exit(runner.execute(study, Path({folder!r}), study.ordered(), command=command))
'''


def test_a_killed_study_ends_like_one_never_killed(tmp_path, trainer, start):
    study = small_study(25)
    assert runner.execute(study, tmp_path / "whole", study.ordered(), command=trainer) == 0
    folder = tmp_path / "broken"
    code = DRIVER.format(tests=str(Path(__file__).parents[1]), script=str(tmp_path / "trainer.py"), folder=str(folder),
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
    """Starts processes, none of which outlives the test; a study's run ends with its study."""
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
from small_studies import small_study

def get_study(steps: int = 60):
    return small_study(steps)
'''


@pytest.mark.slow
def test_a_study_that_trains_is_killed_ten_times(tmp_path, start):
    """At random moments, mostly while a run trains, sometimes while it starts; the study alone or its run as well."""
    path, folder = tmp_path / "small.py", tmp_path / "broken"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parents[1])))
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
    first = dataclasses.replace(small_experiment(steps=2), evals={})
    transfer = Transfer("run:first")  # the same program
    later = dataclasses.replace(small_experiment(32, steps=2, transfer=transfer), evals={})
    study = Study("real", (Run("first", first), Run("then", later)))
    runner.prepare(study, tmp_path)

    def words(name: str) -> list[str]:
        return [*runner.command_of(study[name], tmp_path)[2:], "--alone"]

    assert train_one(words("then")) == 2  # too early
    assert "'first' holds no run" in capsys.readouterr().err.replace(f"{tmp_path.resolve()}/", "")
    assert [train_one(words(name)) for name in ("first", "then")] == [0, 0]
    assert "arrays from" in capsys.readouterr().out
    study.check(tmp_path)
    rows = {row["run"]: row for row in results.result_rows(study, tmp_path)}
    assert [row["status"] for row in rows.values()] == ["done"] * 2
    assert rows["first"]["images"] == 40 and rows["then"]["images"] == 40 and rows["then"]["epochs"] == 2 * 16 / 32
    assert "jax " in rows["then"]["versions"]
    assert [row["run"] for row in results.timings(study, tmp_path)] == ["first", "then"]


def test_what_a_study_refuses(tmp_path, trainer):
    one, other = small_experiment(), small_experiment(30)
    for runs, message in (
        ((), "has no runs"),
        ((Run("a", one), Run("a", other)), "two runs named 'a', with different configs: train.curate"),
        ((Run("a", one), Run("b", small_experiment(init="run:aa"))), "'b' comes after 'aa'.*did you mean 'a'"),
        ((Run("a", one, after=("b",)), Run("b", one, after=("a",))), "a after b after a"),
    ):
        with pytest.raises(UserError, match=message):
            Study("s", runs)
    for name in ("a/b", "..", "logs", "-x", ""):
        with pytest.raises(UserError, match="cannot be a folder name"):
            Run(name, one)
    study, folder = Study("s", (Run("a", one),)), tmp_path / "study"
    with pytest.raises(UserError, match=r"--only 'b.' matches no run of study 's'; did you mean|valid: a"):
        study.select("b*")
    assert runner.execute(study, folder, study.runs, command=trainer) == 0
    with pytest.raises(UserError, match=r"run 'a' in .* was made with another config: train.curate.*remove that run"):
        runner.prepare(Study("s", (Run("a", other),)), folder)
    changed = dataclasses.replace(one, evals={"other": one.evals["validation"]})
    with pytest.raises(UserError, match="another config: evals"):
        Study("s", (Run("a", changed),)).check(folder)
    with pytest.raises(UserError, match="holds the study 's', not 't'"):
        Study("t", study.runs).check(folder)
    (folder / "a" / "run.json").write_text('{"format": 2, "step": 20}')
    with pytest.raises(UserError, match="is at step 20 of 20"):
        results.final_metrics(folder / "a", one)
    (folder / "a" / "run.json").unlink()
    with pytest.raises(UserError, match=r"holds no run: it has no run.json"):
        results.final_metrics(folder / "a", one)
    for text in ("{", "[1]", '{"name": 3}', '{"runs": [{"status": "done"}]}', '{"runs": [{"name": "a", "status": 1}]}'):
        (folder / "study.json").write_text(text)
        with pytest.raises(UserError, match=r"cannot read .*study.json: .*; remove it; the study writes a new one"):
            study.check(folder)


def test_study_files(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parents[1])))
    assert load_study(f"{path}:steps=7").runs[0].experiment.steps == 7
    for text, message in (("x = 1", "has no function get_study"), ("def get_config(): pass", "bvl train takes"),
                          ("def get_study(): return 1", "get_study returned int, expected a Study")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_study(str(path))
    with pytest.raises(UserError, match=r"no study file .*did you mean.*small.py"):
        load_study(str(tmp_path / "smal.py"))


def test_factors_of_transfers_are_those_of_pretraining():
    noisy = small_experiment(20)
    noisy = dataclasses.replace(noisy, seed=3, train=dataclasses.replace(
        noisy.train, curate=(NestedSubset(20), LabelNoise(0.6))))
    study = Study("s", (Run("a", noisy, factors={"images": 20}), Run("b", small_experiment(64, "run:a"))))
    assert study.factors(study["b"]) == {
        "depth": 10, "seed": 0, "noise": 0.4, "noise_kind": "uniform", "frozen": True, "init": "pretraining",
        "head": "Classification", "stage": "transfer", "images": 20}


def test_cost_counts_flops():
    one = small_experiment()
    # Stem 3x3x3x4 on 16x16, then by hand for the first block: two 3x3x4x4 on 16x16.
    assert cost.training_flops(one) > 20 * 16 * 3 * 2 * (16 * 16 * 27 * 4 + 2 * 16 * 16 * 9 * 16)
    assert cost.training_flops(small_experiment(steps=40)) == 2 * cost.training_flops(one)
    assert cost.training_flops(small_experiment(init="run:a")) == pytest.approx(cost.training_flops(one) / 3)
    twice = cost.estimate_seconds(small_experiment(steps=40), [(one, cost.START_SECONDS + 10)])
    assert twice == (cost.START_SECONDS + 20, True)
    assert not cost.estimate_seconds(one, [])[1]


def test_list_and_gather(tmp_path, trainer, capsys, monkeypatch):
    path = tmp_path / "small.py"
    path.write_text(STUDY_FILE.format(tests=str(Path(__file__).parents[1])))
    folder = tmp_path / "study"
    assert command.study([str(path), "--workdir", str(folder), "--list", "--only", "frozen*"]) == 0
    output = capsys.readouterr().out
    assert not folder.exists() and "frozen,20" in output and "at an assumed speed" in output
    assert [line.split()[0] for line in output.splitlines()[1:5]] == ["20", "frozen,20", "40", "frozen,40"]
    study = load_study(str(path))
    assert runner.execute(study, folder, study.select("20"), command=trainer) == 0
    (folder / "results.csv").unlink()
    capsys.readouterr()
    assert command.study([str(path), "--workdir", str(folder), "--gather"]) == 0
    assert "1 of 4 runs are done" in capsys.readouterr().out and read(folder)["20"]["status"] == "done"


def test_resolved_configs_hold_all_that_a_job_needs(tmp_path):
    study = small_study()
    runner.prepare(study, tmp_path)
    experiment = configs.read(tmp_path / "configs" / "frozen,40.json")
    assert experiment == study.experiment(study["frozen,40"], tmp_path)
    assert experiment.transfer.init == str((tmp_path / "40").resolve())


def test_known_results_count_as_done(tmp_path, trainer, capfd):
    first, other = tmp_path / "first", tmp_path / "other"
    study = small_study()
    assert runner.execute(study, first, study.ordered(), command=trainer) == 0
    results.add_known(other, [first / "results.csv"])
    assert runner.execute(study, other, study.ordered(), command=trainer) == 0
    assert "4 of 4 runs done" in capfd.readouterr().out
    assert not (other / "20").exists()
    assert (other / "results.csv").read_bytes() == (first / "results.csv").read_bytes()

    # A longer study: what a new run starts from is trained again, as its weights are needed; the rest is known.
    more = Study("small", (*study.runs, Run("frozen,again", small_experiment(64, "run:40", 10))))
    assert [run.name for run in results.unfinished(more, other, more.runs)] == ["40", "frozen,again"]
    assert runner.execute(more, other, more.ordered(), command=trainer) == 0
    assert read(other)["frozen,again"]["status"] == "done"
    assert sorted(path.parent.name for path in other.glob("*/run.json")) == ["40", "frozen,again"]


def test_identities_follow_what_decides_a_result():
    def identity(*runs):
        return Study("any", runs).identities[runs[-1].name]

    def frozen(*before, **changes):
        return identity(*before, Run("frozen", small_experiment(64, "run:p", **changes)))

    plain = identity(Run("a", small_experiment()))
    renamed = dataclasses.replace(small_experiment(), log_every=7, branch=Branch("run:a", 3), keep=(4,))
    assert identity(Run("a", small_experiment()), Run("b", renamed)) == plain
    assert identity(Run("a", small_experiment(steps=21))) != plain != identity(Run("a", small_experiment(41)))
    before, longer = Run("p", small_experiment(20)), Run("p", small_experiment(20, steps=21))
    assert frozen(before) != frozen(longer)
    assert frozen(before) == identity(dataclasses.replace(before, name="q"),
                                      Run("frozen", small_experiment(64, "run:q")))


def test_known_results_need_hashes(tmp_path):
    (tmp_path / "old.csv").write_text("run,status\na,done\n")
    with pytest.raises(UserError, match=r"old.csv: no column 'config'; expected a results.csv with the hash of each"):
        results.add_known(tmp_path, [tmp_path / "old.csv"])


def test_a_budget_ends_a_study_between_runs(tmp_path, trainer, capfd, monkeypatch):
    monkeypatch.setattr(cost, "START_SECONDS", 10.0)
    study, folder = small_study(), tmp_path / "study"
    assert runner.execute(study, folder, study.ordered(), command=trainer, budget=1.0) == 0
    assert "20 would end after the 1 s of the budget; 4 of 4 runs are left" in capfd.readouterr().out
    assert runner.execute(study, folder, study.ordered(), command=trainer, budget=1_000.0) == 0
    assert all(row["status"] == "done" for row in read(folder).values())
    with pytest.raises(UserError, match="--budget-seconds 0; expected a number above 0"):
        command.study(["configs/studies/quickstart.py", "--workdir", str(folder), "--budget-seconds", "0"])
