"""What torchvision's DeepLabV3 computes from seeded weights: `python tests/goldens/segmentation/make.py`.

Needs torch and torchvision. The tests use the seeded weights alone and compare with expected.npz.
"""

import runpy
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WEIGHTS = runpy.run_path(str(HERE.parent / "weights" / "make.py"))
EXPECTED = HERE / "expected.npz"
CLASSES = 4
"""With the background."""
RATES = (2, 4, 6)
"""Small enough for every tap of the filters to fall into a small image."""
NORM = (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))


def images(count=2, size=(97, 65)):
    """uint8 [count, *size, 3], with structure at every scale."""
    rng = np.random.default_rng(0)
    made = sum(np.kron(rng.integers(0, 64, (count, -(-size[0] // s), -(-size[1] // s), 3)), np.ones((1, s, s, 1)))
               [:, : size[0], : size[1]] for s in (1, 4, 16, 64))
    return made.astype(np.uint8)


def names():
    """(theirs, ours) of the decoder's and the auxiliary head's arrays."""
    def pair(conv, norm, ours):
        yield f"{conv}.weight", f"{ours}.conv.kernel"
        yield from ((f"{norm}.{a}", f"{ours}.norm.{b}") for a, b in NORM)

    for i in range(4):
        yield from pair(f"classifier.0.convs.{i}.0", f"classifier.0.convs.{i}.1", f"decoder.aspp.branches.{i}")
    yield from pair("classifier.0.convs.4.1", "classifier.0.convs.4.2", "decoder.aspp.pooled")
    yield from pair("classifier.0.project.0", "classifier.0.project.1", "decoder.aspp.mix")
    yield from pair("classifier.1", "classifier.2", "decoder.refine")
    yield from pair("aux_classifier.0", "aux_classifier.1", "auxiliary.filters")
    for theirs, ours in (("classifier.4", "decoder.scores"), ("aux_classifier.4", "auxiliary.scores")):
        yield f"{theirs}.weight", f"{ours}.conv.kernel"
        yield f"{theirs}.bias", f"{ours}.conv.bias"


def arrays(tensors):
    """Their decoder and auxiliary head in our names and layout."""
    return {ours: tensors[theirs].transpose(2, 3, 1, 0) if tensors[theirs].ndim == 4 else tensors[theirs]
            for theirs, ours in names()}


def ours(depth, rates, tensors=None):
    """Our DeepLabV3 with their weights, by default the seeded ones: from images to scores, as `compute`."""
    import jax
    from flax import nnx

    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.data.source import SavedDatasetInfo
    from big_vision_lite.heads.segmentation import DeepLabV3, Segmentation
    from big_vision_lite.heads.segmentation.decoders import upsample
    from big_vision_lite.training.step import merge, split
    from big_vision_lite.training.trees import flatten
    from big_vision_lite.weights import convert, naming

    backbone = ResNet(depth, output_stride=8, pixels=naming.IMAGENET)
    data = SavedDatasetInfo(tuple("abcdefgh"[: CLASSES - 1]), True, "", 1, "")
    head = Segmentation(DeepLabV3(rates), auxiliary=0.4)
    graphdef, *state = split(nnx.eval_shape(lambda: head.build(backbone.build(nnx.Rngs(0)), data, nnx.Rngs(0))))
    like = {name.partition(".")[2]: leaf for name, leaf in flatten(state).items()}
    if tensors is None:
        tensors = WEIGHTS["tensors"](_shapes(like))
    of_backbone = {name.removeprefix("backbone."): value for name, value in tensors.items()
                   if name.startswith("backbone.")}
    found = {**convert.to_ours(of_backbone, like), **arrays(tensors)}
    assert found.keys() == like.keys() and all(found[name].shape == like[name].shape for name in like)
    filled = jax.tree.unflatten(jax.tree.structure(state), [found[name] for name in like])

    @jax.jit
    def forward(state, images):
        model = merge(graphdef, *state)
        stages = model.backbone(images, train=False)
        found = {"out": model.decoder(stages, False, None), "aux": model.auxiliary(stages[-2], False, None)}
        return {name: upsample(scores, images.shape[1:3]) for name, scores in found.items()}

    return lambda images: jax.tree.map(np.asarray, forward(filled, images))


def _shapes(like):
    """Names and shapes of our arrays in torchvision, without torch."""
    from big_vision_lite.weights import convert, naming

    zeros = {name: np.zeros(leaf.shape, bool) for name, leaf in like.items()}
    backbone = {name: value for name, value in zeros.items() if "backbone" in name}
    of_backbone = convert.to_theirs(naming.TORCHVISION, backbone)
    of_heads = {theirs: zeros[name].transpose(3, 2, 0, 1) if zeros[name].ndim == 4 else zeros[name]
                for theirs, name in names()}
    found = {f"backbone.{name}": value for name, value in of_backbone.items()} | of_heads
    return {name: value.shape for name, value in found.items()}


def build(depth, rates=None):
    """torchvision's DeepLabV3 of output stride 8, with the seeded weights."""
    from torchvision.models import segmentation
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    model = getattr(segmentation, f"deeplabv3_resnet{depth}")(
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    if rates:
        model.classifier = DeepLabHead(2048, CLASSES, rates)
    return WEIGHTS["fill"](model)


def compute(model, pixels):
    """{"out", "aux"}: scores [n, h, w, classes] at the images' size."""
    import torch

    with torch.no_grad():
        found = model(WEIGHTS["torch_input"](pixels, *WEIGHTS["IMAGENET"]))
    return {key: value.permute(0, 2, 3, 1).numpy() for key, value in found.items()}


def main():
    found = {key: value[:, ::12, ::8] for key, value in compute(build(50, RATES), images()).items()}
    np.savez_compressed(EXPECTED, **found)
    print({name: (value.shape, float(np.abs(value).max())) for name, value in found.items()})


if __name__ == "__main__":
    main()
