"""A run's network as one function of images for other programs: StableHLO, ONNX and TensorFlow's SavedModel.

The function takes uint8 images ``[b, h, w, 3]`` of the network's size, for any b; pixel normalization and what turns
logits into probabilities or masks are inside. Resizing is not: model.json says how the run's evaluation did it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import UInt8

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.backbones.pool import as_maxima
from big_vision_lite.errors import UserError, first_line, writing
from big_vision_lite.runs.evaluate import open_run
from big_vision_lite.system import cpu
from big_vision_lite.system.atomic import write_bytes, write_text
from big_vision_lite.system.paths import as_path
from big_vision_lite.training.best import CheckpointChoice
from big_vision_lite.training.step import TrainState, merge
from big_vision_lite.training.trainer import Trainer

Form = Literal["stablehlo", "onnx", "savedmodel"]
PLATFORMS = ("cpu", "cuda", "tpu")
"""Where the StableHLO runs."""
Serving = Callable[[UInt8[Array, "b h w 3"]], dict[str, Array]]


def serving_function(trainer: Trainer, state: TrainState) -> Serving:
    """The network with its evaluation parameters as constants; its outputs are those of ``Head.serve``."""
    head, step = trainer.experiment.head, trainer.step
    params, batch_stats = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)),  # on one device
                                       (state.eval_params, state.batch_stats))
    height, width, _ = trainer.experiment.view.transform.shape
    # What predict() reads beside the image is that of an image without annotations which fills its place.
    targets = head.targets({"id": "", "labels": ()})
    targets |= {name: np.array([height, width], np.int32) for name in ("size", "original_size") if name in targets}

    def serve(images: UInt8[Array, "b h w 3"]) -> dict[str, Array]:
        rows = images.shape[0]
        batch = {name: jnp.broadcast_to(jnp.asarray(value), (rows, *np.shape(value)))
                 for name, value in targets.items()}
        batch |= {"image": images, "mask": jnp.ones(rows, bool)}
        return head.serve(merge(step.graphdef, params, batch_stats), batch)

    return serve


def export(run: Path, out: Path, form: Form, checkpoint: CheckpointChoice = "last",
           allowed: tuple[str, ...] = ()) -> str:
    """Write a run's network and model.json to the folder ``out``. Returns a one-line summary.

    - stablehlo: ``model.stablehlo``, which ``jax.export.deserialize`` reads, for CPUs, GPUs and TPUs;
    - onnx: ``model.onnx``, by jax2onnx;
    - savedmodel: a TensorFlow SavedModel with the signature "serving_default".

    Args:
      checkpoint, allowed: as `open_run`.

    Raises:
      UserError: no such run, a package is missing, the converter lacks an operation of the network, or ``out`` cannot
        be written.
    """
    if form != "stablehlo":
        _require(form)
    trainer, state, step = open_run(run, checkpoint, allowed)
    return write_program(trainer, state, step, out, form)


def write_program(trainer: Trainer, state: TrainState, step: int, out: Path, form: Form) -> str:
    """As `export`, for a run that is open."""
    write = {"stablehlo": _write_stablehlo, "onnx": _write_onnx, "savedmodel": _write_savedmodel}[form]
    out, shape = as_path(out), trainer.experiment.view.transform.shape
    function = serving_function(trainer, state)
    with _plain_forms():
        outputs = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
        with writing(f"to {str(out)!r}", "choose another --out"):
            out.mkdir(parents=True, exist_ok=True)
            write(function, shape, out)
            write_text(out / "model.json", json.dumps({
                "inputs": {"images": {"dtype": "uint8", "shape": ["b", *shape]}},
                "outputs": {name: {"dtype": str(value.dtype), "shape": ["b", *value.shape[1:]]}
                            for name, value in outputs.items()},
                "classes": list(trainer.data.classes), "preprocessing": preprocessing(trainer), "step": step,
            }, indent=1) + "\n")
    return f"{form} of step {step}: uint8 images [b, {', '.join(map(str, shape))}] to {', '.join(outputs)}"


def preprocessing(trainer: Trainer) -> dict[str, Any]:
    """What happens to an image before the network: ``resize``, in words and by the transform's fields, and the pixel
    normalization, ``(pixel - mean) / std``, which exported functions contain."""
    from big_vision_lite import config

    transform = trainer.experiment.view.transform
    height, width, _ = transform.shape
    pixels = getattr(trainer.experiment.backbone, "pixels", PixelNormalization())
    words = " ".join((type(transform).__doc__ or "").partition("\n\n")[0].split()).removesuffix(" For evaluation.")
    return {"size": [height, width], "resize": {"words": words, **config.identity(transform)},
            "mean": list(pixels.mean), "std": list(pixels.std), "antialias": getattr(transform, "antialias", True)}


@contextlib.contextmanager
def _plain_forms() -> Iterator[None]:
    """Trace XLA's own operations: those that are fast on the CPUs of this machine need not be elsewhere."""
    before = cpu.settings()
    cpu.force(cpu.CpuSettings("plain", {}, before.devices))
    try:
        yield
    finally:
        cpu.force(before)


def _write_stablehlo(function: Serving, shape: tuple[int, ...], out: Path) -> None:
    from jax import export as jax_export

    rows, = jax_export.symbolic_shape("b")
    exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((rows, *shape), jnp.uint8))
    write_bytes(out / "model.stablehlo", bytes(exported.serialize()))


def _write_onnx(function: Serving, shape: tuple[int, ...], out: Path) -> None:
    import jax2onnx
    import onnx

    names = sorted(jax.eval_shape(function, jax.ShapeDtypeStruct((1, *shape), jnp.uint8)))
    try:
        with as_maxima(), contextlib.redirect_stderr(io.StringIO()):  # where it names its examples' missing packages
            model = jax2onnx.to_onnx(lambda images: tuple(function(images)[name] for name in names),
                                     inputs=[jax.ShapeDtypeStruct(("b", *shape), jnp.uint8)], model_name="model",
                                     input_names=["images"], output_names=names)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(f"--to onnx: jax2onnx cannot convert this network: {first_line(error)}; use --to stablehlo"
                        ) from error
    onnx.checker.check_model(model)
    write_bytes(out / "model.onnx", model.SerializeToString())


def _write_savedmodel(function: Serving, shape: tuple[int, ...], out: Path) -> None:
    import tensorflow as tf
    from jax.experimental import jax2tf

    converted = jax2tf.convert(function, polymorphic_shapes=[f"(b, {', '.join(map(str, shape))})"], with_gradient=False)
    module = tf.Module()
    module.serve = tf.function(converted, autograph=False,
                               input_signature=[tf.TensorSpec([None, *shape], tf.uint8, "images")])
    tf.saved_model.save(module, str(out), signatures={"serving_default": module.serve})


def _require(form: Form) -> None:
    """Raises: UserError when the packages that write a form are not installed."""
    names, advice = {"onnx": (("jax2onnx", "onnx"), "pip install 'big_vision_lite[onnx]'"),
                     "savedmodel": (("tensorflow",), "pip install 'big_vision_lite[tf]'")}[form]
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise UserError(f"--to {form} needs {name}, which is not installed; {advice}, or use --to stablehlo"
                            ) from error
