"""What a preflight says: names of slices, what is compiled for them, and that the counted figures are near those."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import pytest

from big_vision_lite import config
from big_vision_lite.backbones.conv import by_xla
from big_vision_lite.backbones.norm import BatchNorm
from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.commands.launch import preflight as command
from big_vision_lite.data.emoji_scenes import EmojiScenes
from big_vision_lite.data.image_folder import ImageFolder
from big_vision_lite.data.pipeline import Input
from big_vision_lite.data.transforms import PadCrop
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.launch.analytic import count_step
from big_vision_lite.launch.compiled import batch_description, bytes_on_a_device, compile_step, devices_of
from big_vision_lite.launch.preflight import DECODED, described, preflight, table
from big_vision_lite.launch.slices import slice_of
from big_vision_lite.training.job import Job
from big_vision_lite.training.mesh import Mesh
from big_vision_lite.training.operations import count
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.schedules import Cosine

pytestmark = pytest.mark.usefixtures("compile_once")


def experiment(batch_size: int = 8, size: int = 32, width: float = 1 / 8, **more) -> Experiment:
    return Experiment(
        train=Input(EmojiScenes("train", 16, size=size, classes=4), PadCrop(size, pad=0), batch_size, threads=1),
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
def test_slices_by_name(text, name, chips, devices, hosts, cores):
    found = slice_of(text)
    assert (found.name, found.chips, found.devices, found.hosts, found.host_cores) == (name, chips, devices, hosts,
                                                                                       cores)


@pytest.mark.parametrize(("text", "said"), [
    ("v5lite-16", "did you mean 'v5litepod-'"), ("v4-30", "no accelerator type"), ("v5litepod-2", "accelerator type"),
    ("v5e:2x2x2", "has 3 axes"), ("gpu:h10:8", "did you mean 'h100'"), ("gpu:h100", "expected a number of GPUs"),
    ("cpu:0", "no topology"), ("", "no topology")])
def test_faults_in_a_slice_are_named(text, said):
    with pytest.raises(UserError) as error:
        slice_of(text)
    assert said in str(error.value)


@pytest.fixture(scope="module")
def job() -> Job:
    return Job(experiment(), devices=devices_of(slice_of("cpu:2")))


@pytest.fixture(scope="module")
def cost(job):
    return compile_step(job)


def test_the_described_batch_is_the_one_that_training_takes(job):
    batch = job.to_devices(next(job.batches(job.experiment.train, job.data, seed=0)))
    want = {key: (value.shape, value.dtype, value.sharding) for key, value in batch.items()}
    got = {key: (value.shape, value.dtype, value.sharding) for key, value in batch_description(job).items()}
    assert got == want


def test_the_compiled_step_is_that_of_training(job, cost):
    # Arguments and results are the run's own state and batch, so that memory is at least theirs.
    state, batch = bytes_on_a_device(job.description), bytes_on_a_device(batch_description(job))
    assert cost.memory > state + batch and cost.fits is None
    assert jax.devices()[0].platform == "cpu" and job.mesh.size == 2


@pytest.mark.parametrize(("size", "window", "stride", "pad"), [(9, 3, 2, (1, 1)), (8, 1, 2, (0, 0)), (2, 3, 1, (1, 1)),
                                                                (12, 7, 2, (2, 3))])
def test_products_are_counted_as_by_xla(size, window, stride, pad):
    def step(x, kernel):  # a convolution with both gradients, and a matrix product
        y, back = jax.vjp(lambda x, k: by_xla(x, k, (stride,) * 2, (pad, pad), (1, 1)), x, kernel)
        return y, back(y), y[0, 0] @ kernel[0, 0].T

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, size, size, 3), (window, window, 3, 5))]
    want = jax.jit(step).lower(*shapes).cost_analysis()["flops"]
    assert count(jax.make_jaxpr(step)(*shapes).jaxpr).flops == pytest.approx(want, rel=1e-3)


def test_counted_figures_are_near_those_compiled(job, cost):
    counted = count_step(job)
    assert 0.5 < counted.flops / cost.flops < 1.01  # in so narrow a network what is not a product counts, too
    assert 0.2 < counted.bytes / cost.bytes < 1.5  # a CPU's compiler fuses less
    assert 0.3 < counted.memory / cost.memory < 2


def test_counting_follows_pieces_devices_and_spread_parameters():
    whole = count_step(Job(experiment(), devices=devices_of(slice_of("cpu:1"))))
    halves = count_step(Job(experiment(), devices=devices_of(slice_of("cpu:2"))))
    pieces = count_step(Job(experiment(accumulate=2), devices=devices_of(slice_of("cpu:1"))))
    spread = Job(experiment(mesh=Mesh(fsdp=2)), devices=devices_of(slice_of("cpu:2")))
    assert halves.flops == pytest.approx(whole.flops / 2) and pieces.flops == pytest.approx(whole.flops)
    assert halves.memory < whole.memory
    assert bytes_on_a_device(spread.description.params) < 0.7 * sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(spread.description.params))


def test_figures_follow_from_each_other():
    found = preflight(experiment(batch_size=64), "gpu:h100:8", described(experiment(), classes=5), decode_rate=100.0)
    value = {name: figure.value for name, figure in found.figures.items()}
    seconds = max(value["flops_per_step_per_device"] / 989e12, value["bytes_per_step_per_device"] / 3350e9)
    assert value["roofline_images_per_second"] == pytest.approx(64 / seconds)
    assert value["hours"] == pytest.approx(1000 * 64 / value["images_per_second"] / 3600)
    assert value["device_hours"] == pytest.approx(8 * value["hours"])
    assert value["decode_cores_per_host"] == -(-value["images_per_second"] // 100)
    assert found.fits is True and value["hosts"] == 1
    how = {name: figure.how for name, figure in found.figures.items()}
    assert (how["flops_per_step_per_device"], how["hours"], how["decode_cores_per_host"]) == ("analytic", "assumed",
                                                                                              "given")
    huge = experiment(batch_size=64, size=8192, width=1.0)
    assert preflight(huge, "gpu:t4:8", described(huge, classes=5)).fits is False


def test_command_prints_json_for_cpus_and_exits(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text("from test_preflight import experiment\n\ndef get_config():\n    return experiment()\n")
    assert command([str(config), "--topology", "cpu:2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = found["figures"]
    assert found["topology"] == "cpu:2" and figures["flops_per_step_per_device"]["how"] == "compiled"
    assert figures["fits"]["value"] is None and figures["hours"]["value"] is None
    with pytest.raises(UserError, match="does not divide"):
        command([str(config), "--topology", "cpu:3"])


def test_data_need_not_be_there(tmp_path):
    missing = dataclasses.replace(experiment(), train=dataclasses.replace(
        experiment().train, source=ImageFolder(str(tmp_path / "nowhere"))))
    with pytest.raises(UserError, match="or give --classes N"):
        described(missing)
    assert len(described(missing, classes=7).classes) == 7
    for wrong in ({"decode_rate": 0.0}, {"share": float("nan")}):
        with pytest.raises(UserError, match="expected a number above 0"):
            preflight(missing, "cpu:1", described(missing, classes=7), **wrong)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_other_heads(task):
    found = config.load(str(Path(__file__).parent.parent / "configs" / "transfer" / f"emoji_{task}.py"))
    seen = preflight(found, "gpu:h100:1", described(found, classes=5))
    assert seen.fits and seen.figures["flops_per_image"].value > 1e8


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra tpu")


@needs_libtpu
@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v4-32", "v5p-8", "v5litepod-1", "v5litepod-16", "v6e-8"])
def test_libtpu_knows_the_accelerator_types(name):
    assert len(devices_of(slice_of(name))) == slice_of(name).devices


@needs_libtpu
def test_a_slice_that_is_not_there():
    # Two by two chips of v5e: the step, with its sums over devices, compiled by the TPU's own compiler.
    found = preflight(experiment(), "v5e:2x2", described(experiment(), classes=4))
    value = {name: figure.value for name, figure in found.figures.items()}
    assert found.fits is True and value["devices"] == 4 and value["device_memory"] == 16 * 2**30
    assert found.figures["flops_per_step_per_device"].how == "compiled" and value["flops_per_image"] > 1e6
    assert value["host_virtual_cores"] == 112 and value["decode_cores_per_host"] >= value["images_per_second"] / DECODED
    assert "v5e:2x2" in table(found).title
    with pytest.raises(UserError, match="knows no such slice"):
        preflight(experiment(batch_size=9), "v5e:3x3", described(experiment(), classes=4))
