"""A training step of ResNet-50 in bfloat16 against torchvision's, interleaved in one run.

    python benchmarks/classification_step.py --turns 10 --torch-python OTHER/bin/python

Random images in device memory, as bytes, 1,000 classes, softmax, SGD with Nesterov momentum, BatchNorm over the
batch; torch with autocast and channels last, as written and compiled. `interleaved` does the timing. Needs torch and
torchvision, in this environment or in that of ``--torch-python``.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from interleaved import Step, main

CLASSES = 1_000


def batch(images: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.integers(0, 255, (images, side, side, 3), dtype=np.uint8),
            rng.integers(0, CLASSES, images).astype(np.int32))


def jax_step(images: int, side: int) -> Step:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from big_vision_lite.backbones.resnet import ResNet
    from big_vision_lite.data.source import SavedDatasetInfo
    from big_vision_lite.heads.classification import Classification
    from big_vision_lite.training.step import TrainStep, split

    head = Classification("softmax")
    data = SavedDatasetInfo(tuple(map(str, range(CLASSES))), False, "", 1, "")

    def network():
        return head.build(ResNet(50, dtype="bfloat16").build(nnx.Rngs(0)), data, nnx.Rngs(1))

    program = TrainStep(split(nnx.eval_shape(network))[0], head, optax.sgd(0.001, 0.9, nesterov=True))
    state = jax.jit(lambda: program.init(*split(network())[1:]))()
    pixels, labels = batch(images, side)
    padded = np.full((images, head.max_labels), -1, np.int32)
    padded[:, 0] = labels
    inputs = {"image": jnp.asarray(pixels), "labels": jnp.asarray(padded), "mask": jnp.ones(images, bool)}
    begin = time.perf_counter()
    compiled = jax.jit(program.train_step, donate_argnums=0).lower(state, inputs).compile()
    print(f"compiling: {time.perf_counter() - begin:.1f} s", file=sys.stderr)

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, inputs)
        return float(metrics["loss"])

    return step


def torch_step(images: int, side: int, compiled: bool = False) -> Step:
    import torch
    import torchvision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    model = torchvision.models.resnet50(weights=None).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, 0.9, nesterov=True)
    network = torch.compile(model) if compiled else model
    pixels, labels = batch(images, side)
    inputs = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).long().to(device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network((inputs - 127.5) / 127.5), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_compiled_step(images: int, side: int) -> Step:
    return torch_step(images, side, compiled=True)


if __name__ == "__main__":
    main(__doc__, {"jax": jax_step, "torch": torch_step, "torch compiled": torch_compiled_step}, images=256, side=224)
