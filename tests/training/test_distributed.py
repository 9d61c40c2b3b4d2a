"""Several processes train, score, save and stop as one; parameters spread over devices change nothing."""

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from processes import CONFIG, TIMES, exit_codes, free_port, output, start, start_process, train_command, wait_for_step

from big_vision_lite import config as configs
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.cli import main
from big_vision_lite.errors import UserError
from big_vision_lite.training import distributed
from big_vision_lite.training.distributed import Processes, is_multi_process, join, leaving_on_error, machine_count
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.metrics import read_metrics, read_run
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.trainer import Trainer
from big_vision_lite.training.trees import flatten

pytestmark = pytest.mark.usefixtures("compile_once")

STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    (path / "tiny.py").write_text(CONFIG)
    return path


def assert_same(one: Path, other: Path) -> None:
    """Both ran through the same steps, with the same losses, learning rates and scores."""
    lines = [read_metrics(run / "metrics.jsonl") for run in (one, other)]
    assert [line["step"] for line in lines[1]] == [line["step"] for line in lines[0]] == [*range(1, STEPS + 1), STEPS]
    for a, b in zip(*lines, strict=True):
        for key in a.keys() - set(TIMES):
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    assert lines[1][-1]["validation/images"] == 21  # of batches of 8: each once


@pytest.fixture(scope="module")
def alone(folder):
    assert main(train_command(folder, "alone")) == 0
    return folder / "alone"


def test_two_processes_stop_together_and_one_goes_on(folder, alone, capfd):
    started = start(folder, "two", 2, 2, "--profile", "1:2", pace=0.05)
    wait_for_step(folder, "two", started, 3)
    started[1].send_signal(signal.SIGTERM)  # to the one that writes nothing
    codes = exit_codes(folder, "two", started)
    assert codes == [128 + signal.SIGTERM] * 2, [output(folder, "two", i) for i in range(2)]
    (out, err), (silent, other_err) = output(folder, "two", 0), output(folder, "two", 1)
    stopped = [int(text.split("after step ")[1].split(",")[0]) for text in (err, other_err)]
    assert stopped[0] == stopped[1] < STEPS and f"step {stopped[0]}/{STEPS}" in out and "step" not in silent
    run = folder / "two"
    assert read_run(run)["processes"] == 2 and read_run(run)["step"] == stopped[0]
    assert len([*(run / "profile").rglob("*.xplane.pb")]) == 1  # of process 0

    assert main(train_command(folder, "two")) == 0  # alone, on as many devices as the test has
    assert f"going on from step {stopped[0]}" in capfd.readouterr().out
    assert_same(alone, run)


def test_images_on_the_devices_of_two_processes(folder, alone):
    started = start(folder, "resident", 2, 2, "--train.resident", "device", "--log-every", "5",
                    "--steps-per-call", "5")
    assert exit_codes(folder, "resident", started) == [0, 0], output(folder, "resident", 0)
    assert "first 5 steps after" in output(folder, "resident", 0)[0]
    lines, expected = (read_metrics(run / "metrics.jsonl") for run in (folder / "resident", alone))
    assert [line["step"] for line in lines] == [*range(5, STEPS + 1, 5), STEPS]
    for line in lines:
        other = next(other for other in expected if other["step"] == line["step"] and other.keys() == line.keys())
        for key in line.keys() - set(TIMES):
            assert line[key] == pytest.approx(other[key], rel=1e-5), (line["step"], key)


def test_open_mpi_needs_no_flags(folder, alone):
    """The variables that mpirun sets for each process, of which JAX finds the address of the first."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "OMPI_COMM_WORLD_SIZE": "2",
                   "OMPI_MCA_orte_hnp_uri": f"{os.getpid() << 12}.0;tcp://127.0.0.1:34911",
                   "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    started = [start_process(folder, "mpi", rank, [], {**environment, "OMPI_COMM_WORLD_RANK": str(rank),
                                                       "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert exit_codes(folder, "mpi", started) == [0, 0], output(folder, "mpi", 0)
    assert read_run(folder / "mpi")["processes"] == 2
    assert_same(alone, folder / "mpi")


def test_a_process_that_waits_for_others_in_vain(folder):
    alone_of_two = start(folder, "vain", 2, 1, "--init-timeout", "3")
    other = alone_of_two.pop()
    other.kill()
    other.wait()
    assert exit_codes(folder, "vain", alone_of_two) == [2], output(folder, "vain", 0)
    assert "did not find each other within 3 s; all must reach 127.0.0.1:" in output(folder, "vain", 0)[1]
    assert not (folder / "vain").exists()


def test_ctrl_c_while_a_process_waits_for_others(folder):
    process, other = start(folder, "waits", 2, 1)
    other.kill()
    other.wait()
    port = next(word for word in process.args if word.startswith("127.0.0.1:")).rpartition(":")[2]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until it listens for the other
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", int(port))) == 0:
                break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.mark.slow
def test_four_processes_then_two(folder):
    assert main(train_command(folder, "deep_alone")) == 0
    name = "deep_four"
    started = start(folder, name, 4, 1, pace=0.05)
    wait_for_step(folder, name, started, 2)
    started[3].send_signal(signal.SIGTERM)
    assert exit_codes(folder, name, started) == [128 + signal.SIGTERM] * 4, output(folder, name, 0)
    started = start(folder, name, 2, 2)
    assert exit_codes(folder, name, started) == [0, 0], output(folder, name, 0)
    assert "going on from step" in output(folder, name, 0)[0]
    assert_same(folder / "deep_alone", folder / name)


@pytest.mark.slow
def test_all_processes_are_killed_while_they_save(folder, alone):
    name, begun = "killed", False
    started = start(folder, name, 2, 2, pace=0.05)
    while not begun:
        begun = any(path.name.startswith("20.") for path in (folder / name).glob("checkpoints/*"))
        assert all(process.poll() is None for process in started), output(folder, name, 0)
    for process in started:
        process.kill()
    assert exit_codes(folder, name, started) == [-signal.SIGKILL] * 2
    assert not (folder / name / "checkpoints" / "20").exists()  # it was not complete
    started = start(folder, name, 2, 2)
    assert exit_codes(folder, name, started) == [0, 0], output(folder, name, 0)
    assert "going on from step 10" in output(folder, name, 0)[0]
    assert_same(alone, folder / name)


NEIGHBOURS = """
import sys
import time
from big_vision_lite import config as configs
from big_vision_lite.training.distributed import Processes, join
process, port, file = int(sys.argv[1]), *sys.argv[2:]
join(Processes("127.0.0.1:" + port, 2, process, 300))
import jax, numpy as np
from big_vision_lite.training.trainer import Trainer
experiment = configs.load(file)
a, b, c, d = jax.devices()
for devices in ((a, b, c, d), (a, c, b, d), (d, a, b, c)):
    trainer = Trainer(experiment, devices=devices)
    metrics = trainer.score(trainer.init(), "validation")
    print("\\nscored", metrics["loss"], metrics["mAP"], metrics["images"])  # Gloo prints parts of lines between
"""


@pytest.mark.slow
def test_devices_of_different_processes_may_be_neighbours(folder):
    port = free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    started = [subprocess.Popen([sys.executable, "-c", NEIGHBOURS, str(i), str(port), str(folder / "tiny.py")],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
               for i in range(2)]
    for process in started:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        scores = [[float(v) for v in line.split()[1:]] for line in out.splitlines() if line.startswith("scored ")]
        assert len(scores) == 3
        np.testing.assert_allclose(scores, scores[:1] * 3, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Watched(SGD):
    """Notes how the gradients that it gets are spread."""

    seen: dict = dataclasses.field(default_factory=dict)

    def build(self, steps):
        plain = super().build(steps)

        def update(grads, state, params=None):
            for name, leaf in flatten(grads).items():
                jax.debug.inspect_array_sharding(leaf, callback=functools.partial(self.note, name, leaf.shape))
            return plain.update(grads, state, params)

        return optax.GradientTransformation(plain.init, update)

    def note(self, name, shape, sharding):
        self.seen[f"params.{name}"] = 4 * int(np.prod(sharding.shard_shape(shape)))


def test_spread_parameters_change_nothing(folder):
    watched = Watched(0.01)
    tiny = dataclasses.replace(configs.load(f"{folder}/tiny.py:deep=true"), optimizer=watched,
                               backbone=ResNet(10, width=1 / 8, stem="half"))
    losses, held = {}, {}
    for fsdp in (1, 4):
        trainer = Trainer(dataclasses.replace(tiny, mesh=Mesh(fsdp=fsdp)), devices=jax.devices()[:4])
        state = trainer.init()
        held[fsdp] = {name: leaf.addressable_shards[0].data.nbytes for name, leaf in flatten(state).items()}
        losses[fsdp] = []
        for batch in trainer.batches(tiny.train, trainer.data, tiny.seed, 0, 3):
            state, figures = trainer.train_step(state, trainer.to_devices(batch))
            losses[fsdp].append([float(figures["loss"]), float(figures["grad_norm"])])
        after = {name: leaf.addressable_shards[0].data.nbytes for name, leaf in flatten(state).items()}
        assert after == held[fsdp]  # a step keeps them as they were
        gradients = {name: held[fsdp][name] for name in watched.seen}
        assert len(gradients) > 20 and watched.seen == gradients  # as their parameters are
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5)
    spread = {name for name in held[4] if held[4][name] < held[1][name]}
    assert all(held[4][name] * 4 == held[1][name] for name in spread)
    assert {name.split(".")[0] for name in spread} == {"params", "optimizer"}  # statistics are small
    large = {name for name, size in held[1].items() if size >= 4 * 2**12}
    assert large == spread
    assert sum(held[4].values()) < 0.35 * sum(held[1].values())  # of a network of which a tenth is small


def test_ctrl_c_before_the_first_step_ends_one_of_several_processes_at_once(monkeypatch):
    """JAX's orderly exit would wait for the others until they count as gone."""
    codes = []
    monkeypatch.setattr(distributed, "hard_exit", codes.append)
    for several in (False, True):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda several=several: several)
        with (contextlib.nullcontext() if several else pytest.raises(KeyboardInterrupt)), leaving_on_error():
            raise KeyboardInterrupt
    assert codes == [128 + signal.SIGINT]


def test_who_is_who():
    assert not is_multi_process({"JAX_PLATFORMS": "cpu"})
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "8"}
    assert not is_multi_process({**slurm, "JAX_PLATFORMS": "cpu"})  # within sbatch, but not one of srun's
    slurm |= {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
    assert is_multi_process(slurm) and machine_count(slurm) == 2
    mpi = {"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert is_multi_process(mpi) and machine_count(mpi) == 2
    assert is_multi_process({"TPU_WORKER_HOSTNAMES": "t0,t1"}) and machine_count({"TPU_WORKER_HOSTNAMES": "t0,t1"}) == 2
    assert not is_multi_process({"TPU_WORKER_HOSTNAMES": "localhost"})
    assert not is_multi_process({"TPU_WORKER_HOSTNAMES": "t0,t1", "JAX_PLATFORMS": "cpu"})
    assert machine_count({}) == 1


@pytest.mark.parametrize(("flags", "message"), [
    (["--processes", "2"], "must be given together"),
    (["--coordinator", "here", "--processes", "2", "--process", "0"], "'here'; expected HOST:PORT"),
    (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "--process 2 of --processes 2; expected 0 to 1"),
    (["--init-timeout", "0"], "at least 1 second"),
    (["--profile", "7"], "expected FIRST:LAST"),
])
def test_flags_that_cannot_be(folder, capsys, flags, message):
    assert main(train_command(folder, "never", *flags)) == 2
    assert message in capsys.readouterr().err and not (folder / "never").exists()


def test_a_coordinator_that_others_cannot_reach():
    together = Processes("localhost:8476", 2, 1)
    with pytest.raises(UserError, match="localhost:8476 is a loopback address, and there are 2 machines"):
        join(together, {"SLURM_STEP_NUM_NODES": "2"})
    assert Processes("[::1]:80", 1, 0).on_this_machine and not Processes("10.0.0.2:80", 1, 0).on_this_machine
