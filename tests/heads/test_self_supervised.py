"""SimCLR and BYOL against compositions in numpy, on several devices; the target network; what is transferred."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from toy_backbone import Toy

from big_vision_lite.backbones.resnet import ResNet
from big_vision_lite.data.pipeline import BatchMaker, Input
from big_vision_lite.data.source import SavedDatasetInfo
from big_vision_lite.data.sources.emoji_scenes import EmojiScenes
from big_vision_lite.data.sources.unlabelled_folder import UnlabelledFolder
from big_vision_lite.data.transforms.image import RandomCropPadded, Resize
from big_vision_lite.data.transforms.views import simclr_views
from big_vision_lite.errors import UserError
from big_vision_lite.experiment import Experiment
from big_vision_lite.heads.classification import Classification
from big_vision_lite.heads.losses import embedding_std, nt_xent, view_match
from big_vision_lite.heads.self_supervised import BYOL, SimCLR
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.runs.predict import predictions
from big_vision_lite.training import mesh as meshes
from big_vision_lite.training.loop import train
from big_vision_lite.training.optimizers import SGD
from big_vision_lite.training.probe import Probe
from big_vision_lite.training.step import TrainStep, merge, split
from big_vision_lite.training.transfer import Transfer
from big_vision_lite.training.trees import flatten

pytestmark = pytest.mark.usefixtures("compile_once")

DATA = SavedDatasetInfo((), True, "", 1, "")
HEADS = (SimCLR(hidden=64, size=8, temperature=0.2), BYOL(hidden=64, size=8, momentum=0.75))


def batch(images: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (images, 32, 16, 3), np.uint8), "mask": np.arange(images) != 5,
            "key": rng.integers(0, 2**32, (images, 2), np.uint32)}


def started(head) -> tuple[TrainStep, dict, dict]:
    graphdef, params, stats = split(head.build(Toy().build(nnx.Rngs(0)), DATA, nnx.Rngs(1)))
    return TrainStep(graphdef, head, optax.sgd(0.5)), params, stats


def mlp(x, params):
    """Linear, BatchNorm over the batch, ReLU, linear, in float64."""
    x = x @ np.float64(params["first"]["kernel"])
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return np.maximum(x, 0) @ np.float64(params["last"]["kernel"]) + params["last"]["bias"]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def contrast(z, temperature):
    """Equation 1 of Chen et al., one view after the other. z: the first views of all images, then the second."""
    losses = []
    for i, view in enumerate(z):
        logits = {k: view @ other / temperature for k, other in enumerate(z) if k != i}
        losses.append(-np.log(np.exp(logits[(i + len(z) // 2) % len(z)]) / sum(map(np.exp, logits.values()))))
    return np.mean(losses)


def expected_loss(head, step, params, target, stats, inputs):
    """The mean loss over unmasked images, from the backbone's features."""
    views = np.concatenate([inputs["image"][:, :16], inputs["image"][:, 16:]])
    valid = np.tile(inputs["mask"], 2)

    def features(of):
        backbone = merge(step.graphdef, {**params, "backbone": of["backbone"]}, stats).backbone
        return np.float64(backbone(jnp.asarray(views), train=False)[-1]).mean((1, 2))

    z = mlp(features(params), params["projector"])
    if isinstance(head, SimCLR):
        return contrast(unit(z[valid]), head.temperature)
    predicted = unit(mlp(z, params["predictor"]))
    targets = np.roll(unit(mlp(features(target), target["projector"])), len(views) // 2, axis=0)
    return ((predicted - targets) ** 2).sum(1)[valid].mean()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_loss_and_step_equal_a_composition_in_numpy_on_one_two_and_four_devices(head):
    step, params, stats = started(head)
    inputs, results = batch(), []
    for devices, fsdp in ((1, 1), (2, 1), (4, 2)):
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:devices]).reshape(-1, fsdp), meshes.AXES)
        state = step.init(params, stats)
        state = jax.device_put(state, meshes.state_shardings(state, mesh))
        run, sharded = jax.jit(step.train_step), jax.device_put(inputs, meshes.batch_sharding(mesh))
        target, losses, history = params, [], []
        for _ in range(3):
            history.append((jax.device_get(state.params), jax.device_get(state.batch_stats)))
            state, metrics = run(state, sharded)
            losses.append(float(metrics["loss"]))
        for (before, batch_stats), loss in zip(history, losses, strict=True):
            if isinstance(head, BYOL):
                target = jax.tree.map(lambda old, new: head.momentum * old + (1 - head.momentum) * new,
                                      {name: target[name] for name in ("backbone", "projector")},
                                      {name: before[name] for name in ("backbone", "projector")})
            assert loss == pytest.approx(expected_loss(head, step, before, target, batch_stats, inputs), abs=1e-5)
        assert losses[2] < losses[0]
        results.append(jax.device_get(state))
    for other in results[1:]:
        for name, leaf in flatten(results[0]).items():
            tolerance = 1e-5 * max(1.0, np.abs(leaf).max())
            np.testing.assert_allclose(flatten(other)[name], leaf, rtol=1e-4, atol=tolerance, err_msg=name)


def test_the_target_network_is_sharded_and_not_trained():
    _, params, stats = started(BYOL(hidden=1024, size=8))
    assert not any("target" in name for name in flatten(params))
    targets = {name.removeprefix("target."): leaf for name, leaf in flatten(stats).items() if "target." in name}
    kernel = meshes.state_shardings(stats, meshes.Mesh(fsdp=2).build())["target"]["projector"]["first"]["kernel"]
    assert not kernel.is_fully_replicated
    trained = {name for name in flatten(params) if not name.startswith("predictor")}
    assert trained <= {*targets} and all("mean" in name or "var" in name for name in {*targets} - trained)


def test_masked_views_are_no_negatives_and_a_batch_of_them_has_no_loss():
    z = jnp.float32(unit(np.random.default_rng(0).normal(size=(12, 5))))
    mask, all_of_them = jnp.repeat(jnp.array([True, True, False, True, False, True]), 2), jnp.ones(8, bool)
    losses, matches = nt_xent(z, mask, 0.3), view_match(z, mask)
    np.testing.assert_allclose(losses[mask], nt_xent(z[mask], all_of_them, 0.3), rtol=1e-6)
    np.testing.assert_array_equal(matches[mask], view_match(z[mask], all_of_them))
    assert not losses[~mask].any() and not matches[~mask].any()
    gradient = jax.grad(lambda z, mask: nt_xent(z, mask, 0.3).sum())
    assert np.isfinite(gradient(z, mask)).all() and not gradient(z, mask)[~mask].any()
    assert not gradient(z, jnp.zeros(12, bool)).any()


def test_a_collapse_is_measured_and_said():
    spread = jnp.float32(unit(np.random.default_rng(0).normal(size=(4000, 16))))
    assert float(embedding_std(spread, jnp.ones(4000, bool))) == pytest.approx(1.0, abs=0.01)
    assert float(embedding_std(jnp.repeat(spread[:1], 64, 0), jnp.arange(64) < 60)) < 1e-3
    head = SimCLR()
    assert head.warning({"embedding_std": 0.9}) is None and head.warning({"loss": 1.0}) is None
    assert "collapsed" in head.warning({"embedding_std": 0.01})


def test_a_resumed_run_ends_with_the_same_bits_and_only_the_backbone_is_transferred(tmp_path, capsys):
    labelled = [Input(dataclasses.replace(EmojiScenes(split, 16, size=32, classes=4, objects=(1, 1))), Resize(16), 8)
                for split in ("train", "validation")]
    photos = tmp_path / "photos"
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (20, 24, 18, 3), np.uint8)):
        (photos / f"of {number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(photos / f"of {number % 3}" / f"{number}.png")
    inputs = Input(UnlabelledFolder(str(photos)), simclr_views(16), 8)
    whole = Experiment(inputs, {"validation": inputs}, ResNet(10, width=1 / 16, stem="half"), BYOL(hidden=16, size=8),
                       SGD(0.05), steps=4, log_every=1, save_every=2, keep=(2,),
                       probes={"emoji": Probe(*labelled, ("neighbours",), neighbours=3)})
    results = train(whole, tmp_path / "whole")
    assert 0 <= results["validation/match"] <= 1 and 0 <= results["emoji/neighbours_3"] <= 1
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "4")
    train(whole, tmp_path / "broken")
    assert "going on from step 2" in capsys.readouterr().out
    states = [flatten(open_run(tmp_path / name)[1]) for name in ("whole", "broken")]
    assert int(states[0]["batch_stats.updates"]) == 4
    for name, leaf in states[0].items():
        np.testing.assert_array_equal(leaf, states[1][name], err_msg=name)
    ((_, prediction),) = predictions(*open_run(tmp_path / "whole")[:2], [np.full((20, 30, 3), 99, np.uint8)])
    assert -1 <= prediction.values["similarity"] <= 1

    tuned = dataclasses.replace(
        whole, train=dataclasses.replace(labelled[0], transform=RandomCropPadded(16, pad=2)),
        evals={"validation": labelled[1]}, head=Classification("softmax"), probes={}, keep=(), steps=1,
        transfer=Transfer(str(tmp_path / "whole"), freeze=("backbone",)))
    train(tuned, tmp_path / "tuned")
    state = flatten(open_run(tmp_path / "tuned")[1])
    backbone = {name for name in states[0] if name.startswith(("params.backbone.", "batch_stats.backbone."))}
    assert {name for name in state if name.startswith(("params", "batch_stats"))} == {
        *backbone, "params.head.kernel", "params.head.bias"}
    for name in backbone:
        np.testing.assert_array_equal(state[name], states[0][name], err_msg=name)


def test_a_batch_of_one_image_and_images_without_views_are_refused():
    step, params, stats = started(HEADS[0])
    with pytest.raises(UserError, match="a batch, or micro-batch, of one image has no others to tell it from"):
        dataclasses.replace(step, grad_accum_steps=8).gradient(params, stats, jax.tree.map(jnp.asarray, batch()))
    inputs = Input(EmojiScenes("train", 8, size=32, classes=4), RandomCropPadded(16), 8)
    with pytest.raises(UserError, match="comes without two views; expected the transform TwoViews"):
        BatchMaker(inputs.open(), inputs, HEADS[0].targets, 0)(0)


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"hidden": 0}, {"size": 1}], ids=str)
def test_fields_out_of_range(fields):
    with pytest.raises(UserError, match="expected"):
        SimCLR(**fields)
    with pytest.raises(UserError, match="expected from 0 to below 1"):
        BYOL(momentum=1.0)
