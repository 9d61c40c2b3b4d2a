"""A training step of Faster R-CNN with R50-FPN against torchvision's, interleaved in one run.

    python benchmarks/detection_step.py --turns 5 --torch-python OTHER/bin/python

Both train on the same images and boxes by SGD, with the stem, the first stage and BatchNorm's statistics frozen.
`interleaved` does the timing. Needs torch and torchvision, in this environment or in that of ``--torch-python``.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from interleaved import Step, main

BOXES = 8


def batch(images: int, side: int) -> dict[str, np.ndarray]:
    """Random pixels and boxes, as `FasterRCNN.targets` returns them."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, side * 0.7, (images, BOXES, 2))
    boxes = np.zeros((images, 100, 4), np.float32)
    boxes[:, :BOXES] = np.concatenate([corner, corner + rng.uniform(20, side * 0.3, (images, BOXES, 2))], -1)
    kind = np.zeros((images, 100), np.int32)
    kind[:, :BOXES] = 1
    return {
        "image": rng.integers(0, 255, (images, side, side, 3), dtype=np.uint8),
        "mask": np.ones(images, bool),
        "boxes": boxes,
        "kind": kind,
        "box_labels": rng.integers(0, 20, (images, 100)).astype(np.int32),
        "size": np.full((images, 2), side, np.int32),
        "original_size": np.full((images, 2), side, np.int32),
        "scale": np.ones((images, 2), np.float32),
        "key": rng.integers(0, 2**31, (images, 2)).astype(np.uint32),
    }


def jax_step(images: int, side: int) -> Step:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.data.source import SavedDatasetInfo
    from big_vision_lite.heads.detection.faster_rcnn import FasterRCNN
    from big_vision_lite.heads.detection.variants import FPN
    from big_vision_lite.training.step import TrainStep, split
    from big_vision_lite.training.transfer import Transfer

    head = FasterRCNN(variant=FPN())
    transfer = Transfer(freeze=("backbone.stem", "backbone.stem_norm", "backbone.stages.0"), freeze_batchnorm=True)
    data = SavedDatasetInfo(tuple(map(str, range(20))), True, "", 1, "")

    def network():
        model = head.build(ResNet(50).build(nnx.Rngs(0)), data, nnx.Rngs(1))
        transfer.fix_running_stats(model)
        return model

    graphdef = split(nnx.eval_shape(network))[0]
    program = TrainStep(graphdef, head, transfer.optimizer(optax.sgd(0.001, 0.9)), frozen=transfer.frozen)
    state = jax.jit(lambda: program.init(*split(network())[1:]))()
    inputs = jax.tree.map(jnp.asarray, batch(images, side))
    begin = time.process_time()
    compiled = jax.jit(program.train_step, donate_argnums=0).lower(state, inputs).compile()
    print(f"compiling: {time.process_time() - begin:.1f} s of CPU", file=sys.stderr)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, inputs)
        return float(metrics["loss"])

    return step


def torch_step(images: int, side: int) -> Step:
    import torch
    import torchvision

    def freeze(module) -> None:
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torchvision.ops.FrozenBatchNorm2d(child.num_features))
            else:
                freeze(child)

    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=21, min_size=side, max_size=side,
        rpn_post_nms_top_n_train=1000)
    freeze(model.backbone)
    for name, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad = not name.startswith(("conv1", "layer1"))
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.001, 0.9)
    data = batch(images, side)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    inputs = [torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in data["image"]]
    targets = [{"boxes": torch.from_numpy(boxes[:BOXES]).to(device),
                "labels": torch.from_numpy(labels[:BOXES]).long().to(device) + 1}
               for boxes, labels in zip(data["boxes"], data["box_labels"], strict=True)]

    def step() -> float:
        loss = sum(model(inputs, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    main(__doc__, {"jax": jax_step, "torch": torch_step}, images=2, side=320)
