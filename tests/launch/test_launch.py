"""Launching: approved scripts, run with stand-ins for the clouds' programs that record their arguments."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_programs import FakePrograms

from big_vision_lite.commands.launch import launch
from big_vision_lite.errors import UserError
from big_vision_lite.launch.clusters import Data, Local, SkyPilot, Slurm, read_cluster
from big_vision_lite.launch.render import cloud_name, render

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "launch"
CLUSTERS = ROOT / "configs" / "clusters"
HARD = "it's $(touch stolen) `touch stolen` \"c\"; touch stolen"


def renderings() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("make_launch_goldens", GOLDENS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.renderings()


def test_renderings_are_the_approved_ones():
    rendered = renderings()
    approved = {path.name: path.read_text() for path in GOLDENS.iterdir() if path.suffix in (".sh", ".sbatch", ".yaml")}
    assert rendered.keys() == approved.keys()
    for name, text in rendered.items():
        assert text == approved[name], f"{name}: run {GOLDENS / 'make.py'} and review what changed"


def test_shell_is_well_formed(tmp_path):
    for name, text in renderings().items():
        if name.endswith(".yaml"):
            task = yaml.safe_load(text)
            pieces = {part: f"#!/bin/bash\n{task[part]}" for part in ("setup", "run")}
            assert task["file_mounts"]["/data"] == {"source": "gs://my-bucket/tensorflow_datasets", "mode": "COPY"}
        else:
            pieces = {"all": text}
        for part, script in pieces.items():
            path = tmp_path / f"{name}.{part}"
            path.write_text(script)
            subprocess.run(["bash", "-n", path], check=True)
            if shellcheck := shutil.which("shellcheck", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}"):
                result = subprocess.run([shellcheck, "--severity=warning", path], capture_output=True, text=True)
                assert result.returncode == 0, result.stdout


def test_words_that_yaml_would_misread():
    hard = {"A": "no", "B": "1:30", "C": "~", "D": "a \nb: c\n\n d\n", "E": "é: # x", "F": HARD, "G": "x" * 200 + " y"}
    cluster = SkyPilot("/runs", hard, accelerators="H100: 8 #", data=(Data("gs://a/it's", "/b: c #", "copy"),))
    task = yaml.safe_load(render(cluster, "a-run", "x.py", [HARD]).files["task.yaml"])
    assert task["envs"] == hard and list(task["file_mounts"]) == ["/b: c #"] and "infra" not in task["resources"]
    cluster = dataclasses.replace(cluster, infra="no", runtime_version="1e3", disk_gb=7, nodes=2, spot=False,
                                  restarts=5)
    task = yaml.safe_load(render(cluster, "a-run", "x.py", [HARD]).files["task.yaml"])
    assert task["num_nodes"] == 2 and task["resources"] == {
        "infra": "no", "accelerators": "H100: 8 #", "accelerator_args": {"runtime_version": "1e3"}, "disk_size": 7,
        "use_spot": False, "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 5}}


@pytest.fixture
def fakes(tmp_path) -> FakePrograms:
    return FakePrograms(tmp_path)


def test_gcloud_requests_again_after_a_preemption_and_releases(fakes):
    # States by poll; the run is done at the eighth.
    fakes.add("gcloud", r"""
count="$FAKES/polls"
case "$*" in
  *" describe "*)
    echo x >>"$count"
    states=(none WAITING_FOR_RESOURCES ACTIVE SUSPENDED none PROVISIONING ACTIVE ACTIVE)
    state=${states[$(($(wc -l <"$count") - 1))]}
    if [[ $state == none ]]; then echo 'ERROR: NOT_FOUND' >&2; exit 1; fi
    echo "$state" ;;
  "storage ls"*finished) [[ -e $count ]] && (($(wc -l <"$count") >= 7)) ;;
  "storage ls"*) exit 1 ;;
esac""")
    result = fakes.run("bash", GOLDENS / "hard.launch.sh")
    assert result.returncode == 0, result.stderr
    assert "the run is done: gs://bucket/my runs/hard-run" in result.stdout
    verbs = [call[3] for call in fakes.calls("gcloud") if call[2:3] == ["queued-resources"]]
    assert [verb for verb in verbs if verb != "describe"] == ["create", "delete", "create", "delete"]
    create = next(call for call in fakes.calls("gcloud") if "create" in call)
    assert create[3:] == [
        "create", "hard-run", "--node-id=hard-run", "--accelerator-type=v4-32 `touch stolen`",
        "--runtime-version=tpu-ubuntu2204-base $(touch stolen)",
        f"--metadata-from-file=startup-script={GOLDENS / 'startup.sh'}",
        "--service-account=me@example.org; it's $(touch stolen)", "--network=default `touch stolen` & *",
        "--project=a project; rm -rf /", "--zone=a zone; touch stolen"]
    assert not list(fakes.root.rglob("stolen"))


def test_startup_fetches_code_and_data_and_resumes_after_a_crash(fakes):
    root, venv = fakes.root / "bvl", fakes.root / "prepared_venv"
    venv.mkdir()
    # Training dies once, then finishes.
    fakes.add("python", 'printf %s "$GREETING" >"$FAKES/greeting"\n[[ -e $FAKES/died ]] || { touch "$FAKES/died"; '
              'exit 137; }', venv)
    fakes.add("python3", 'if [[ "$*" == *" venv "* ]]; then mkdir -p "$BVL_ROOT/venv/bin"; '
              'cp "$FAKES/prepared_venv/python" "$BVL_ROOT/venv/bin/"; fi')
    fakes.add("git", 'if [[ $1 == clone ]]; then mkdir -p "${@: -1}"; fi')
    fakes.add("curl", "echo 0")
    fakes.add("gcloud")
    fakes.add("gcsfuse")
    fakes.add("mountpoint", "exit 1")
    # Folders outside the test's own are only recorded, not created.
    fakes.add("mkdir", 'case "${*: -1}" in /data*|/other|/labels) ;; *) /bin/mkdir "$@" ;; esac')
    settings = {"BVL_ROOT": str(root), "BVL_LOG": str(fakes.root / "log")}
    result = fakes.run("bash", GOLDENS / "hard.startup.sh", **settings)
    log = (fakes.root / "log").read_text()
    assert result.returncode == 0, log
    training = ["-m", "big_vision_lite", "train", "configs/pretrain/imagenet1k.py:depth=50,data_dir=/data", "--workdir",
            "gs://bucket/my runs/hard-run", "--train.source.name", "it's $(a) `b` \"c\"; d", "--steps", "7"]
    assert fakes.calls("python") == [training, training] and "ended with 137" in log
    assert (fakes.root / "greeting").read_text() == "it's `date` \"$HOME\""
    assert fakes.calls("git")[0] == ["clone", "--quiet", "--", "https://example.org/$(touch stolen)/it's.git",
                                     str(root / "code")]
    assert fakes.calls("gcsfuse") == [
        ["--implicit-dirs", "-o", "ro", "--only-dir", "images of cats", "bucket", "/data/it's here"],
        ["--implicit-dirs", "-o", "ro", "other", "/other"]]
    assert fakes.calls("gcloud") == [
        ["storage", "rsync", "--recursive", "gs://bucket/labels", "/labels"],
        ["storage", "cp", str(root / "mark"), "gs://bucket/my runs/hard-run/launch/finished"]]
    assert not list(fakes.root.rglob("stolen"))
    # A host that restarts installs nothing again.
    installs = len(fakes.calls("git")), len(fakes.calls("python3"))
    assert fakes.run("bash", GOLDENS / "hard.startup.sh", **settings).returncode == 0
    assert (len(fakes.calls("git")), len(fakes.calls("python3"))) == installs


def test_slurm_requeues_runs_that_were_told_to_save(fakes):
    cluster = Slurm("/runs", {"X": HARD}, directory=str(fakes.root), time="1:00:00", setup=("true",),
                    python="/a b/python", data=(Data("/far/it's", "/near/it's", "copy"),))
    (fakes.root / "job").write_text(render(cluster, "a-run", "x.py", [HARD]).files["job.sbatch"])
    fakes.add("srun", 'case "$*" in *train*) printf %s "$X" >"$FAKES/x"; exit "${CODE:-0}" ;; esac')
    fakes.add("scontrol")
    for code, restarts, requeues in (("0", "0", []), ("1", "0", []), ("75", "20", []),
                                     ("75", "19", [["requeue", "77"]]), ("143", "99", [["requeue", "77"]] * 2)):
        result = fakes.run("bash", "job", CODE=code, SLURM_JOB_ID="77", SLURM_RESTART_COUNT=restarts)
        assert result.returncode == int(code)
        assert fakes.calls("scontrol") == requeues
    copied, trained = fakes.calls("srun")[1:3]
    assert copied[3:] == ["rsync", "-a", "--", "/far/it's/", "/near/it's"]
    assert trained == ["--wait=300", "/a b/python", "-m", "big_vision_lite", "train", "x.py", "--workdir",
                       "/runs/a-run", HARD]
    assert (fakes.root / "x").read_text() == HARD and not (fakes.root / "stolen").exists()


@pytest.mark.parametrize(("kind", "program", "command"), [
    ("skypilot", "sky", ["jobs", "launch", "--yes", "--detach-run", "{out}/task.yaml"]),
    ("slurm", "sbatch", ["{out}/job.sbatch"])])
def test_run_submits_the_script(kind, program, command, fakes, monkeypatch):
    fakes.add(program, "exit 5")
    monkeypatch.setenv("PATH", f"{fakes.bin}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    out = fakes.root / "out"
    arguments = ["configs/quickstart.py", "--cluster", str(CLUSTERS / f"{kind}.toml"), "--run", "--out", str(out)]
    assert launch([*arguments, "--steps", "7"]) == 5
    assert fakes.calls(program) == [[word.replace("{out}", str(out)) for word in command]]
    assert "--steps 7" in next(out.iterdir()).read_text()


def test_local_processes_end_together(fakes):
    # The second fails once the first has its handler: a signal before that would end it unsaved.
    fakes.add("python", 'printf %s "$X" >$FAKES/x\nif [[ "${*: -1}" == 1 ]]; then\n'
              '  until [[ -e $FAKES/ready ]]; do /bin/sleep 0.05; done\n  exit 3\nfi\n'
              'trap "echo saved >$FAKES/saved; exit 143" TERM\necho >$FAKES/ready\n'
              'for i in {1..300}; do /bin/sleep 0.1; done')
    (fakes.root / "a b; 'c'").symlink_to(fakes.bin)
    cluster = Local("runs", {"X": HARD}, processes=2, python=str(fakes.root / "a b; 'c'" / "python"))
    (fakes.root / "run.sh").write_text(render(cluster, "two", "configs/quickstart.py", [HARD]).files["run.sh"])
    assert fakes.run("bash", "run.sh").returncode == 3
    assert (fakes.root / "saved").exists()
    assert (fakes.root / "x").read_text() == HARD and not list(fakes.root.rglob("stolen"))
    flags = ["--coordinator", "127.0.0.1:8476", "--processes", "2", "--process"]
    assert sorted(fakes.calls("python")) == [
        ["-m", "big_vision_lite", "train", "configs/quickstart.py", "--workdir", "runs/two", HARD, *flags, process]
        for process in ("0", "1")]


def test_local_really_trains(tmp_path):
    (tmp_path / "here.toml").write_text(f'kind = "local"\nruns = "{tmp_path}/runs"\n'
                                        '[environment]\nJAX_NUM_CPU_DEVICES = "1"\n')
    config = tmp_path / "tiny.py"
    config.write_text("""from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms.image import RandomCropPadded
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.training.optimizers import SGD

def get_config(steps: int = 1) -> Experiment:
    train = Input(EmojiScenes("train", 8, size=16, classes=2), RandomCropPadded(16, pad=0), 4, threads=1)
    return Experiment(train, {}, ResNet(10, width=1 / 16), Classification(), SGD(0.1), steps)
""")
    assert launch([f"{config}:steps=2", "--cluster", str(tmp_path / "here.toml"), "--out", str(tmp_path / "out"),
                   "--run", "--train.threads", "2"]) == 0
    assert json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())["step"] == 2


def test_printed_by_default(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert launch(["configs/quickstart.py", "--cluster", str(CLUSTERS / "gcloud.toml"), "--steps", "9"]) == 0
    output = capsys.readouterr().out
    assert "==> launch.sh <==" in output and "gs://my-bucket/runs/quickstart --steps 9" in output
    assert output.endswith("bash launch.sh\n")


@pytest.mark.parametrize(("text", "message"), [
    ('kind = "slrum"', "did you mean 'slurm'"),
    ('kind = "local"\nruns = "x"\nproceses = 2', "Local has no field 'proceses'; did you mean 'processes'"),
    ('kind = "local"', "Local needs 'runs', which is missing"),
    ('kind = "local"\nruns = "x"\nprocesses = "2"', "Local.processes='2': Expected int, got str"),
    ('kind = "local"\nruns = "x"\nprocesses = true', "Local.processes=True: Expected int, got bool"),
    ('kind = "local"\nruns = "x"\nprocesses = 99999999999999999999', "Expected a number of 64 bits"),
    ('kind = "local"\nruns = "x"\nport = inf', "Local.port=inf: Expected int, got float"),
    ('kind = "local"\nruns = 1979-05-27', "Local.runs=datetime.date(1979, 5, 27): Expected str, got date"),
    ('kind = "local"\nruns = "x"\nenvironment = ["A"]', "Local.environment=['A']: Expected object, got array"),
    ('kind = "local"\nruns = "x"\n[environment]\nA = 1', "Expected str, got int"),
    ('kind = ["local"]', "kind=['local']"),
    ('kind = "skypilot"\nruns = "x"\naccelerators = "H100:8"\ndata = "gs://a"', "Expected array, got str"),
    ('kind = "skypilot"\nruns = "x"\naccelerators = "H100:8"\ndata = ["gs://a"]', "Expected a table, got str - at $"),
    ('kind = "local"\nruns = "x"\n[environment]\n"A-B" = "c"', "'A-B' is not a variable name"),
    ('kind = "local"\nruns = "a\\nb"', "unprintable character"),
    ('kind = "slurm"\nruns = "x"\ndirectory = "/x"\ntime = "1 --wrap=x"', "time='1 --wrap=x'"),
    ('kind = "slurm"\nruns = "x"\ndirectory = "/x"\ntime = "1"\n[[data]]\nsource = "a"\ntarget = "/b"\nmod = "copy"',
     "Data has no field 'mod'; did you mean 'mode'"),
    ('kind = "slurm"\nruns = "x"\ndirectory = "/x"\ntime = "1"\n[[data]]\nsource = "a"\ntarget = "/b"\nmode = "cpy"',
     "Data.mode='cpy': Invalid enum value 'cpy'; did you mean 'copy'"),
    ('kind = [', "expected TOML"), ("a = " + "[" * 10**5, "expected TOML"), ("\0", "expected TOML")])
def test_faults_in_a_cluster_are_named(text, message, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_cluster(path)
    assert message in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_a_cluster_cannot_run_is_refused():
    gcloud = read_cluster(CLUSTERS / "gcloud.toml")
    for change, message in (({"runs": "/home/runs"}, "keeps its runs at gs://"),
                         ({"revision": "--upload-pack=x"}, "revision="),
                         ({"data": (Data("/disk", "/x"),)}, "read from gs://")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(gcloud, **change)
    for name, config, overrides, message in (("Bad_Name", "x.py", [], "clouds accept a letter"),
                                             ("x", "/home/me/x.py", [], "a path within it"),
                                             ("x", "x.py", ["a\nb"], "unprintable character"),
                                             ("x", "x.py", ["--workdir", "/x"], "keeps its runs")):
        with pytest.raises(UserError, match=message):
            render(gcloud, name, config, overrides)
    with pytest.raises(UserError, match="did you mean"):
        read_cluster(CLUSTERS / "gclod.toml")
    assert [cloud_name(text) for text in ("ImageNet_1k", "20", "a" * 59 + "-b", "_")] == [
        "imagenet-1k", "run-20", "a" * 59, "run"]


def test_a_host_that_cannot_start_says_so(fakes):
    fakes.add("curl", "echo 3")
    fakes.add("python3", "exit 1")
    fakes.add("gcloud")
    result = fakes.run("bash", GOLDENS / "gcloud.startup.sh", BVL_ROOT=str(fakes.root / "bvl"),
                     BVL_LOG=str(fakes.root / "log"))
    assert result.returncode == 1 and len(fakes.calls("sleep")) == 4
    assert fakes.calls("gcloud")[-1][-1] == "gs://my-bucket/runs/gcloud-run/launch/failed"
    assert "host 3 cannot start" in (fakes.root / "bvl" / "mark").read_text()
