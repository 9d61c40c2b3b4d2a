"""Copied weights give PyTorch's segmentation: torchvision's DeepLabV3, timm's dilated backbone, interpolation, mIoU."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from big_vision_lite.backbones.resnet import ResNet  # noqa: E402
from big_vision_lite.data.masks import VOID  # noqa: E402
from big_vision_lite.evaluation.segmentation import ConfusionMatrix, mask_at_original_size  # noqa: E402
from big_vision_lite.heads.classification import Classifier  # noqa: E402
from big_vision_lite.heads.segmentation import ASPPL  # noqa: E402
from big_vision_lite.heads.segmentation.decoders import _ASPPL, upsample  # noqa: E402
from big_vision_lite.heads.segmentation.losses import pixel_loss  # noqa: E402
from big_vision_lite.training.step import merge, split  # noqa: E402
from big_vision_lite.training.trees import flatten  # noqa: E402
from big_vision_lite.weights import convert, naming  # noqa: E402

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "segmentation" / "make.py"))


def report(name, ours, theirs):
    difference = float(np.abs(ours - theirs).max())
    print(f"{name}: {difference:.1e} of values up to {np.abs(theirs).max():.2f}")
    assert ours.shape == theirs.shape and np.ptp(theirs) > 0.5  # or the comparison would say little
    return difference


@pytest.mark.parametrize(("depth", "size"), [(50, (161, 97)),
                                             pytest.param(101, (321, 225), marks=pytest.mark.slow)])
def test_deeplab_v3(depth, size):
    model = MAKE["build"](depth)  # with its own rates, 12, 24 and 36
    tensors = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim}
    images = MAKE["images"](1, size)
    theirs, ours = MAKE["compute"](model, images), MAKE["ours"](depth, (12, 24, 36), tensors)(images)
    assert report("scores", ours["out"], theirs["out"]) < 1e-3
    assert report("auxiliary", ours["aux"], theirs["aux"]) < 1e-3


@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_backbone(stride):
    model = timm.create_model("resnet50", pretrained=False, features_only=True, output_stride=stride)
    MAKE["WEIGHTS"]["fill"](model)
    backbone = ResNet(50, output_stride=stride, pixels=naming.IMAGENET)
    graphdef, *state = split(nnx.eval_shape(
        lambda: Classifier(backbone.build(nnx.Rngs(0)), 10, 0.0, nnx.Rngs(0))))
    like = {name.partition(".")[2]: leaf for name, leaf in flatten(state).items()}
    tensors = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim}
    loaded = convert.to_ours(tensors, like)
    filled = jax.tree.unflatten(jax.tree.structure(state),
                                [loaded.get(name, np.zeros(leaf.shape, leaf.dtype)) for name, leaf in like.items()])
    images = MAKE["images"](1, (97, 65))
    ours = jax.jit(lambda state, x: merge(graphdef, *state).backbone(x, train=False))(filled, images)
    with torch.no_grad():
        theirs = model(MAKE["WEIGHTS"]["torch_input"](images, *MAKE["WEIGHTS"]["IMAGENET"]))[1:]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert report(f"stage {i}", np.asarray(a), b.permute(0, 2, 3, 1).numpy()) < 1e-3


def test_aspp_l():
    module = _ASPPL(ASPPL((1, 2, 3)), 8, 5, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 8)).astype(np.float32) * 10
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    theirs = 0
    for rate, branch in zip((1, 2, 3), module.branches, strict=True):
        kernel, bias = (torch.from_numpy(np.array(p[...])) for p in (branch.kernel, branch.bias))
        theirs = theirs + torch.nn.functional.conv2d(channels_first, kernel.permute(3, 2, 0, 1), bias, padding=rate,
                                                     dilation=rate)
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    assert report("scores", np.asarray(module((jnp.asarray(x),), False, None)), theirs) < 1e-4


@pytest.mark.parametrize(("before", "after"), [((5, 7), (33, 50)), ((17, 13), (129, 97)), ((20, 21), (7, 9))])
def test_interpolation(before, after):
    scores = np.random.default_rng(0).standard_normal((2, *before, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(scores).permute(0, 3, 1, 2), after, mode="bilinear",
                                             align_corners=False).permute(0, 2, 3, 1).numpy()
    assert report("values", np.asarray(upsample(jnp.asarray(scores), after)), theirs) < 1e-5
    for one, expected in zip(scores, theirs, strict=True):  # the host's interpolation, of the whole canvas
        np.testing.assert_array_equal(mask_at_original_size(one, after, after, after), expected.argmax(-1))
    if after > before:  # as usual elsewhere: to the canvas, cropped, and to the image's size
        usual = torch.nn.functional.interpolate(torch.from_numpy(theirs[:, :20, :30]).permute(0, 3, 1, 2), (40, 60),
                                               mode="bilinear", align_corners=False).argmax(1).numpy()
        ours = mask_at_original_size(scores[0], after, (20, 30), (40, 60))
        assert (ours == usual[0]).mean() > 0.95  # interpolated twice there and once here


def test_loss():
    rng = np.random.default_rng(0)
    scores, mask = rng.standard_normal((3, 8, 9, 4)).astype(np.float32), rng.choice([0, 1, 3, VOID], (3, 8, 9))
    theirs = [float(torch.nn.functional.cross_entropy(torch.from_numpy(s).permute(2, 0, 1)[None],
                                                      torch.from_numpy(m.astype(np.int64))[None], ignore_index=VOID))
              for s, m in zip(scores, mask, strict=True)]
    np.testing.assert_allclose(pixel_loss(jnp.asarray(scores), jnp.asarray(mask.astype(np.uint8))), theirs, rtol=1e-5)


def test_miou_is_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    truth = rng.choice([*range(19), VOID], (4, 40, 30)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.5, np.minimum(truth, 20), rng.integers(0, 20, truth.shape))
    matrix = ConfusionMatrix(tuple(map(str, range(20))))
    theirs = classification.MulticlassJaccardIndex(21, average="macro", ignore_index=VOID)
    for t, p in zip(truth, predicted.astype(np.uint8), strict=True):
        matrix.add_masks(t, p)
        theirs.update(torch.from_numpy(p.astype(np.int64)), torch.from_numpy(t.astype(np.int64)))
    result = matrix.result()
    assert len(result) == 3 + 20  # class 20 is neither in the truth nor predicted: it counts for neither
    assert result["mIoU"] == pytest.approx(float(theirs.compute()), abs=1e-6)
