"""Copied weights give PyTorch's heatmaps: ResNet-50, three deconvolutions and a 1x1 filter (Xiao et al. 2018)."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from big_vision_lite.backbones.resnet import ResNet  # noqa: E402
from big_vision_lite.data.source import SavedDatasetInfo  # noqa: E402
from big_vision_lite.heads.keypoints import DiskOffsets, GaussianHeatmaps, TopDown  # noqa: E402
from big_vision_lite.training.step import merge, split  # noqa: E402
from big_vision_lite.training.trees import flatten  # noqa: E402
from big_vision_lite.weights import convert, naming  # noqa: E402

WEIGHTS = runpy.run_path(str(Path(__file__).parents[1] / "goldens" / "weights" / "make.py"))
NORM = (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))


def deconvolutions():
    """As in their code: 4x4 filters of stride 2 without bias, BatchNorm and ReLU."""
    layers = []
    for inputs in (2048, 256, 256):
        layers += [torch.nn.ConvTranspose2d(inputs, 256, 4, 2, 1, bias=False), torch.nn.BatchNorm2d(256),
                   torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(256, 17, 1))


def names():
    """(theirs, ours) of what follows the backbone."""
    for i in range(3):
        yield f"{3 * i}.weight", f"decoder.deconvolutions.{i}.kernel"
        yield from ((f"{3 * i + 1}.{a}", f"decoder.norms.{i}.{b}") for a, b in NORM)
    yield from (("9.weight", "decoder.heatmaps.kernel"), ("9.bias", "decoder.heatmaps.bias"))


def filled(head, backbone, tensors, more):
    """Our model's arrays: the backbone's from PyTorch's tensors, the others as given."""
    data = SavedDatasetInfo(("person",), False, "", 1, "")
    graphdef, *state = split(nnx.eval_shape(lambda: head.build(backbone.build(nnx.Rngs(0)), data, nnx.Rngs(0))))
    like = {name.partition(".")[2]: leaf for name, leaf in flatten(state).items()}
    found = {**convert.to_ours(tensors, like), **more}
    assert found.keys() == like.keys() and all(found[name].shape == like[name].shape for name in like)
    arrays = jax.tree.unflatten(jax.tree.structure(state), [found[name] for name in like])
    return jax.jit(lambda arrays, images: merge(graphdef, *arrays)(images, train=False)[0]), arrays


def test_heatmaps():
    resnet, decoder = torchvision.models.resnet50(weights=None), deconvolutions()
    WEIGHTS["fill"](resnet), WEIGHTS["fill"](decoder)
    del resnet.fc
    images = np.random.default_rng(0).integers(0, 256, (2, 128, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        x = WEIGHTS["torch_input"](images, *WEIGHTS["IMAGENET"])
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        for i in range(4):
            x = getattr(resnet, f"layer{i + 1}")(x)
        theirs = decoder(x).permute(0, 2, 3, 1).numpy()
    tensors = decoder.state_dict()
    more = {}
    for name, ours in names():
        value = tensors[name].numpy()
        # A transposed convolution's filter, [in, out, h, w], is applied mirrored.
        more[ours] = (value if value.ndim == 1 else value[..., ::-1, ::-1].transpose(2, 3, 0, 1)
                      if "deconvolutions" in ours else value.transpose(2, 3, 1, 0))
    resnet_tensors = {name: value.numpy() for name, value in resnet.state_dict().items() if value.ndim}
    forward, arrays = filled(TopDown(GaussianHeatmaps()), ResNet(50, pixels=naming.IMAGENET), resnet_tensors, more)
    ours = np.asarray(forward(arrays, images))
    scale, difference = np.abs(theirs).max(), np.abs(ours - theirs).max()
    print(f"heatmaps: {difference:.1e} of values up to {scale:.2f}")
    assert ours.shape == theirs.shape == (2, 32, 24, 17) and np.ptp(theirs) > 0.5
    assert difference < 1e-4 * max(scale, 1.0)


def test_disks_and_offsets():
    resnet = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    conv = torch.nn.Conv2d(2048, 51, 1)
    WEIGHTS["fill"](resnet), WEIGHTS["fill"](conv)
    del resnet.fc
    images = np.random.default_rng(0).integers(0, 256, (1, 97, 65, 3), dtype=np.uint8)
    with torch.no_grad():
        x = WEIGHTS["torch_input"](images, *WEIGHTS["IMAGENET"])
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        for i in range(4):
            x = getattr(resnet, f"layer{i + 1}")(x)
        theirs = conv(x).permute(0, 2, 3, 1).numpy()
    more = {"decoder.conv.kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0),
            "decoder.conv.bias": conv.bias.detach().numpy()}
    resnet_tensors = {name: value.numpy() for name, value in resnet.state_dict().items() if value.ndim}
    backbone = ResNet(50, output_stride=8, pixels=naming.IMAGENET)
    forward, arrays = filled(TopDown(DiskOffsets()), backbone, resnet_tensors, more)
    ours = np.asarray(forward(arrays, images))
    scale, difference = np.abs(theirs).max(), np.abs(ours - theirs).max()
    print(f"logits and offsets: {difference:.1e} of values up to {scale:.2f}")
    assert ours.shape == theirs.shape == (1, 13, 9, 51) and np.ptp(theirs) > 0.5
    assert difference < 1e-4 * max(scale, 1.0)
