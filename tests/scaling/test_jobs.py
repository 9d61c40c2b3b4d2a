"""Studies as jobs of each kind of cluster, run with stand-ins for the clusters' programs."""

import dataclasses
import os
import shlex
import subprocess
import sys

import pytest
import yaml
from fake_programs import FakePrograms
from small_studies import small_study

from big_vision_lite.commands.arguments import parse
from big_vision_lite.commands.study import study as command
from big_vision_lite.commands.study_run import RunOptions
from big_vision_lite.errors import UserError
from big_vision_lite.launch.clusters import Gcloud, Local, SkyPilot, Slurm
from big_vision_lite.scaling.studies import runner
from big_vision_lite.scaling.studies.jobs import write_jobs
from big_vision_lite.scaling.studies.study import Study


@pytest.fixture
def study(tmp_path):
    """Two runs, the second of which starts from the first, and a folder whose name must be quoted."""
    runs = small_study().runs[:2]
    workdir = tmp_path / "a study's folder; $(touch stolen)"
    runner.prepare(Study("small", runs), workdir)
    yield Study("small", runs).ordered(), workdir.resolve()
    assert not list(tmp_path.rglob("stolen"))


@pytest.fixture
def fakes(tmp_path) -> FakePrograms:
    return FakePrograms(tmp_path)


def test_slurm(study, fakes):
    runs, workdir = study
    cluster = Slurm("/unused", directory=str(fakes.root), time="7:00:00", partition="gpu", account="vision",
                    gpus_per_node=1, python="/venv/bin/python")
    script = write_jobs(workdir, runs, cluster, imports=["mine"])
    jobs = [workdir / "jobs" / name for name in ("20.sbatch", "frozen,20.sbatch")]
    assert sorted(script.parent.iterdir()) == sorted([script, *jobs])
    fakes.add("sbatch", "echo 70$(wc -l <$FAKES/record)")
    assert fakes.run("bash", script).returncode == 0
    logs = [f"--output={workdir / 'logs' / f'{run.name}.txt'}" for run in runs]
    assert fakes.calls("sbatch") == [["--parsable", logs[0], str(jobs[0])], [
        "--parsable", "--dependency=afterok:701", "--kill-on-invalid-dep=yes", logs[1], str(jobs[1])]]
    options = jobs[0].read_text()
    for option in ("time=7:00:00", "partition=gpu", "account=vision", "gpus-per-node=1", "job-name=run-20"):
        assert f"#SBATCH --{option}\n" in options
    fakes.add("srun", 'exit "$CODE"')
    fakes.add("scontrol")
    for code, restarts, requeued in ((1, 0, False), (75, 19, True), (75, 20, False), (143, 99, True)):
        before = len(fakes.calls("scontrol"))
        result = fakes.run("bash", jobs[0], CODE=str(code), SLURM_RESTART_COUNT=str(restarts), SLURM_JOB_ID="7")
        assert result.returncode == code
        assert fakes.calls("scontrol")[before:] == [["requeue", "7"]] * requeued
    assert fakes.calls("srun")[0] == [
        "--wait=300", "/venv/bin/python", "-m", "big_vision_lite.commands.study_run",
        str(workdir / "configs" / "20.json"), str(workdir / "20"), "--import", "mine", "--alone"]


def test_skypilot(study, fakes):
    runs, workdir = study
    cluster = SkyPilot("gs://bucket/a", accelerators="H100:1", nodes=2, disk_gb=100)
    script = write_jobs(workdir, runs, cluster)
    fakes.add("sky")
    fakes.add("gcloud")
    assert fakes.run("bash", script).returncode == 0
    bucket = f"gs://bucket/a/{workdir.name}"
    assert fakes.calls("gcloud") == [["storage", "rsync", "--recursive", str(workdir), bucket]]
    jobs = [workdir / "jobs" / f"{run.name}.yaml" for run in runs]
    assert fakes.calls("sky") == [["jobs", "launch", "--yes", str(job)] for job in jobs]  # in two waves
    task = yaml.safe_load(jobs[1].read_text())
    assert task["name"] == "frozen-20" and task["workdir"] == "." and task["num_nodes"] == 2
    assert task["file_mounts"] == {str(workdir): {"source": bucket, "mode": "MOUNT"}}
    assert task["resources"] == {"accelerators": "H100:1", "disk_size": 100, "use_spot": True, "job_recovery": {
        "strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 3}}
    words = shlex.split(task["run"])
    assert words[words.index("exec"):] == [
        "exec", "~/bvl/bin/python", "-m", "big_vision_lite.commands.study_run",
        str(workdir / "configs" / "frozen,20.json"), str(workdir / "frozen,20"), "--alone", "$@"]


def test_local_jobs_run_in_order(study, fakes):
    runs, workdir = study
    fakes.add("python", 'echo "log of $*"; [[ $* != */20.json* ]]')
    cluster = Local("/unused", python=str(fakes.bin / "python"))
    result = fakes.run("bash", write_jobs(workdir, runs, cluster))
    assert result.returncode == 1 and result.stderr == "20 failed\n"
    assert [call[2].rpartition("/")[2] for call in fakes.calls("python")] == ["20.json", "frozen,20.json"]
    assert "log of -m big_vision_lite.commands.study_run" in (workdir / "logs" / "frozen,20.txt").read_text()


def test_the_process_of_a_local_job(study, fakes):
    runs, workdir = study
    script = write_jobs(workdir, runs[:1], Local("/unused", {"JAX_PLATFORMS": "none"}, python=sys.executable))
    assert subprocess.run(["bash", script], cwd=fakes.root, env=os.environ).returncode == 1
    assert "JAX finds no device" in (workdir / "logs" / "20.txt").read_text()


def test_a_job_of_two_processes(study, fakes):
    runs, workdir = study
    fakes.add("python")
    script = write_jobs(workdir, runs[:1], Local("/unused", processes=2, python=str(fakes.bin / "python")))
    assert fakes.run("bash", script).returncode == 0
    options = [parse(RunOptions, call[2:], "study_run") for call in fakes.calls("python")]
    assert {(o.processes.coordinator, o.processes.processes, o.processes.process, o.alone) for o in options} == {
        ("127.0.0.1:8476", 2, 0, True), ("127.0.0.1:8476", 2, 1, True)}


def test_what_is_refused(study, tmp_path):
    runs, workdir = study
    cloud = {"project": "p", "zone": "z", "accelerator_type": "v4-8", "runtime_version": "v", "repository": "r"}
    skypilot = SkyPilot("/runs", accelerators="H100:1")
    for cluster, message in ((Gcloud("gs://b/runs", **cloud), "--jobs: kind 'gcloud' mounts no folder"),
                             (skypilot, "--jobs: runs='/runs'; expected a bucket that SkyPilot's machines can mount")):
        with pytest.raises(UserError, match=message):
            write_jobs(workdir, runs, cluster)
    with pytest.raises(UserError, match="has a line break or %"):
        write_jobs(tmp_path / "50%", runs, dataclasses.replace(skypilot, runs="gs://b"))
    with pytest.raises(UserError, match=r"--workdir gs://\.\.\.: a study's folder must be on a disk"):
        command(["configs/studies/quickstart.py", "--workdir", "gs://bucket/study", "--list"])
