"""Preflight: names of topologies, steps compiled for them, and that counted figures are close to compiled ones."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from big_vision_lite import config
from big_vision_lite.backbones.conv import by_xla
from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.commands.launch import preflight as command
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.image_folder import ImageFolder
from big_vision_lite.data.transforms.image import RandomCropPadded
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.launch.accelerators import Topology, parse_topology
from big_vision_lite.launch.compiled import batch_spec, bytes_per_device, compile_step, count_step, devices_of
from big_vision_lite.launch.preflight import DECODE_RATE, _reading, dataset_info, preflight, preflight_table
from big_vision_lite.training.flops import count
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine
from big_vision_lite.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(batch_size: int = 8, size: int = 32, width: float = 1 / 8, **more) -> Experiment:
    return Experiment(
        train=Input(EmojiScenes("train", 16, size=size, classes=4), RandomCropPadded(size, pad=0), batch_size,
                    threads=1),
        evals={}, backbone=ResNet(10, width=width, norm=BatchNorm()), head=Classification("sigmoid"),
        **{"optimizer": SGD(0.1, schedule=Cosine(warmup=0)), "steps": 1000, **more})


@pytest.mark.parametrize(("text", "name", "chips", "devices", "hosts", "cores"), [
    ("v4-32", "v4:2x2x4", 16, 16, 4, 240),
    ("v5litepod-16", "v5e:4x4", 16, 16, 4, 112),
    ("v5litepod-8", "v5e:2x4", 8, 8, 1, 224),
    ("v5p-8", "v5p:2x2x1", 4, 4, 1, 208),
    ("v3-32", "v3:4x4", 16, 32, 4, 96),
    ("tpu-v6e-256", "v6e:16x16", 256, 256, 64, 180),
    ("v5e:4x4", "v5e:4x4", 16, 16, 4, 112),
    ("gpu:h100:12", "gpu:h100:12", 12, 12, 2, None),
    ("cpu:8", "cpu:8", 8, 8, 1, None)])
def test_topologies_by_name(text, name, chips, devices, hosts, cores):
    topology = parse_topology(text)
    assert (topology.name, topology.chips, topology.devices, topology.hosts, topology.host_cores) == (
        name, chips, devices, hosts, cores)


@pytest.mark.parametrize(("text", "message"), [
    ("v5lite-16", "did you mean 'v5litepod-'"), ("v4-30", "unknown accelerator type"),
    ("v5litepod-2", "unknown accelerator type"),
    ("v5e:2x2x2", "has 3 axes"), ("gpu:h10:8", "did you mean 'h100'"), ("gpu:h100", "expected a number of GPUs"),
    ("cpu:0", "unknown topology"), ("", "unknown topology")])
def test_faults_in_a_topology_are_named(text, message):
    with pytest.raises(UserError) as error:
        parse_topology(text)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(experiment(), devices=devices_of(parse_topology("cpu:2")))


@pytest.fixture(scope="module")
def cost(trainer):
    return compile_step(trainer)


def test_the_batch_spec_is_that_of_training(trainer):
    batch = trainer.to_devices(next(trainer.batches(trainer.experiment.train, trainer.data, seed=0)))
    expected = {key: (value.shape, value.dtype, value.sharding) for key, value in batch.items()}
    assert {key: (value.shape, value.dtype, value.sharding) for key, value in batch_spec(trainer).items()} == expected


def test_the_compiled_step_is_that_of_training(trainer, cost):
    # Arguments and results are the run's own state and batch: memory is at least theirs.
    state, batch = bytes_per_device(trainer.state_spec), bytes_per_device(batch_spec(trainer))
    assert cost.memory > state + batch and cost.fits is None
    assert jax.devices()[0].platform == "cpu" and trainer.mesh.size == 2


@pytest.mark.parametrize(("size", "window", "stride", "pad"), [(9, 3, 2, (1, 1)), (8, 1, 2, (0, 0)), (2, 3, 1, (1, 1)),
                                                                (12, 7, 2, (2, 3))])
def test_flops_are_counted_as_by_xla(size, window, stride, pad):
    def step(x, kernel):  # a convolution with both gradients, and a matrix product
        y, back = jax.vjp(lambda x, k: by_xla(x, k, (stride,) * 2, (pad, pad), (1, 1)), x, kernel)
        return y, back(y), y[0, 0] @ kernel[0, 0].T

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, size, size, 3), (window, window, 3, 5))]
    flops = jax.jit(step).lower(*shapes).cost_analysis()["flops"]
    assert count(jax.make_jaxpr(step)(*shapes).jaxpr).flops == pytest.approx(flops, rel=1e-3)


def test_counted_figures_are_close_to_compiled_ones(trainer, cost):
    counted = count_step(trainer)
    assert 0.5 < counted.flops / cost.flops < 1.01  # in so narrow a network, other operations count, too
    assert 0.2 < counted.bytes / cost.bytes < 1.5  # XLA fuses less on CPUs
    assert 0.3 < counted.memory / cost.memory < 2


def test_counting_accounts_for_micro_batches_devices_and_sharding():
    whole = count_step(Trainer(experiment(), devices=devices_of(parse_topology("cpu:1"))))
    halves = count_step(Trainer(experiment(), devices=devices_of(parse_topology("cpu:2"))))
    micro_batches = count_step(Trainer(experiment(grad_accum_steps=2), devices=devices_of(parse_topology("cpu:1"))))
    sharded = Trainer(experiment(mesh=Mesh(fsdp=2)), devices=devices_of(parse_topology("cpu:2")))
    assert halves.flops == pytest.approx(whole.flops / 2) and micro_batches.flops == pytest.approx(whole.flops)
    assert halves.memory < whole.memory
    assert bytes_per_device(sharded.state_spec.params) < 0.7 * sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(sharded.state_spec.params))


def test_figures_follow_from_each_other():
    result = preflight(experiment(batch_size=64), "gpu:h100:8", dataset_info(experiment(), classes=5), 100.0)
    value = {name: figure.value for name, figure in result.figures.items()}
    seconds = max(value["flops_per_step_per_device"] / 989e12, value["bytes_per_step_per_device"] / 3350e9)
    assert value["roofline_images_per_second"] == pytest.approx(64 / seconds)
    assert value["hours"] == pytest.approx(1000 * 64 / value["images_per_second"] / 3600)
    assert value["device_hours"] == pytest.approx(8 * value["hours"])
    assert value["decode_cores_per_host"] == -(-value["images_per_second"] // 100)
    assert result.fits is True and value["hosts"] == 1
    pod = preflight(experiment(batch_size=64), "gpu:h100:8", dataset_info(experiment(), classes=5), image_bytes=2e5)
    value, size = {name: figure.value for name, figure in pod.figures.items()}, experiment().train.transform.shape
    assert value["images_per_second_per_host"] == pytest.approx(value["images_per_second"])
    assert value["read_bytes_per_second_per_host"] == pytest.approx(2e5 * value["images_per_second"])
    assert value["sent_bytes_per_second_per_host"] == pytest.approx(np.prod(size) * value["images_per_second"])
    two_hosts = _reading(experiment(), Topology("pod", "tpu", 8, 2), pod.figures["images_per_second"], 2e5)
    assert two_hosts["read_bytes_per_second_per_host"].value == value["read_bytes_per_second_per_host"] / 2
    how = {name: figure.how for name, figure in result.figures.items()}
    assert (how["flops_per_step_per_device"], how["hours"], how["decode_cores_per_host"]) == ("analytic", "assumed",
                                                                                              "given")
    huge = experiment(batch_size=64, size=8192, width=1.0)
    assert preflight(huge, "gpu:t4:8", dataset_info(huge, classes=5)).fits is False


def test_command_prints_json_for_cpus_and_exits(tmp_path, capsys):
    config = tmp_path / "small.py"
    config.write_text("from small_studies import small_experiment\n\n"
                      "def get_config():\n    return small_experiment()\n")
    assert command([str(config), "--topology", "cpu:2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    figures = result["figures"]
    assert result["topology"] == "cpu:2" and figures["flops_per_step_per_device"]["how"] == "compiled"
    assert figures["fits"]["value"] is None and figures["hours"]["value"] is None
    with pytest.raises(UserError, match="does not divide"):
        command([str(config), "--topology", "cpu:3"])


def test_data_need_not_be_there(tmp_path):
    missing = dataclasses.replace(experiment(), train=dataclasses.replace(
        experiment().train, source=ImageFolder(str(tmp_path / "nowhere"))))
    with pytest.raises(UserError, match="or give --classes N"):
        dataset_info(missing)
    assert len(dataset_info(missing, classes=7).classes) == 7
    for arguments in ({"decode_rate": 0.0}, {"image_bytes": -1.0}, {"share": float("nan")}):
        with pytest.raises(UserError, match="expected a number above 0"):
            preflight(missing, "cpu:1", dataset_info(missing, classes=7), **arguments)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_other_heads(task):
    experiment = config.load(str(Path(__file__).parents[2] / "configs" / "transfer" / f"emoji_{task}.py"))
    result = preflight(experiment, "gpu:h100:1", dataset_info(experiment, classes=5))
    assert result.fits and result.figures["flops_per_image"].value > 1e8


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra tpu")


@needs_libtpu
@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v4-32", "v5p-8", "v5litepod-1", "v5litepod-16", "v6e-8"])
def test_libtpu_knows_the_accelerator_types(name):
    assert len(devices_of(parse_topology(name))) == parse_topology(name).devices


@needs_libtpu
def test_a_slice_that_is_not_here():
    # Two by two chips of v5e: the step with its all-reduces, compiled by the TPU's own compiler.
    result = preflight(experiment(), "v5e:2x2", dataset_info(experiment(), classes=4))
    value = {name: figure.value for name, figure in result.figures.items()}
    assert result.fits is True and value["devices"] == 4 and value["device_memory"] == 16 * 2**30
    assert result.figures["flops_per_step_per_device"].how == "compiled" and value["flops_per_image"] > 1e6
    assert value["host_virtual_cores"] == 112
    assert value["decode_cores_per_host"] >= value["images_per_second"] / DECODE_RATE
    assert "v5e:2x2" in preflight_table(result).title
    with pytest.raises(UserError, match="knows no such slice"):
        preflight(experiment(batch_size=9), "v5e:3x3", dataset_info(experiment(), classes=4))
