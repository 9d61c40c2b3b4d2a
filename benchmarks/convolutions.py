"""Speed of the forms of a convolution on CPUs, in GFLOP/s: the table behind the rules of `backbones.conv`.

    python benchmarks/convolutions.py

For each shape and each of the three convolutions of a layer: XLA's own convolution in its default form (by its library
of kernels) and with the options of `system.cpu`, and the other forms with these options. One device; medians of
interleaved repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from big_vision_lite.backbones import conv
from big_vision_lite.system import cpu

SHAPES = (  # images, height and width, channels in, channels out, size of the filter, stride
    (64, 12, 32, 32, 3, 1), (64, 2, 256, 256, 3, 1), (64, 12, 32, 64, 3, 2), (128, 32, 64, 64, 3, 1),
    (128, 16, 128, 256, 3, 2), (128, 8, 256, 256, 3, 1), (32, 16, 64, 256, 1, 1), (32, 16, 256, 64, 1, 1),
    (32, 4, 1024, 256, 1, 1), (32, 16, 256, 512, 1, 2))


def forms(size: int, stride: int) -> dict[str, dict[str, Callable]]:
    """By convolution and form: functions of the image, the filter and the output's gradient."""
    pad = size // 2
    form = dict(strides=(stride, stride), padding=((pad, pad), (pad, pad)), dilation=(1, 1))

    def of(name: str) -> dict[str, Callable]:
        f = getattr(conv, name)
        return {"forward": lambda x, k, g: f(x, k, **form),
                "to image": lambda x, k, g: jax.vjp(lambda x: f(x, k, **form), x)[1](g)[0],
                "to filter": lambda x, k, g: jax.vjp(lambda k: f(x, k, **form), k)[1](g)[0]}

    xla, products = of("by_xla"), of("by_products")
    made = {name: {"default": xla[name], "xla": xla[name], "products": products[name]} for name in xla}
    if stride > 1 and size > 1:
        made["to image"]["phases"] = lambda x, k, g: conv.image_gradient_by_phases(
            g, k, form["strides"], form["padding"], x.shape[1:3])
    if size == 1:
        made["to filter"]["products"] = lambda x, k, g: conv.kernel_gradient_by_product(
            x, g, form["strides"], form["padding"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=11)
    repeat = parser.parse_args().repeat
    jax.config.update("jax_num_cpu_devices", 1)
    for images, side, inputs, outputs, size, stride in SHAPES:
        key, pad = jax.random.key(0), size // 2
        x = jax.random.normal(key, (images, side, side, inputs))
        kernel = jax.random.normal(key, (size, size, inputs, outputs))
        y = conv.by_xla(x, kernel, (stride, stride), ((pad, pad),) * 2, (1, 1))
        giga = 2 * y.size * size * size * inputs / 1e9
        print(f"{size}x{size}, stride {stride}, {side}x{side}, {inputs} -> {outputs}, {images} images")
        for name, made in forms(size, stride).items():
            jitted = {form: jax.jit(f, compiler_options=None if form == "default" else cpu.OPTIONS)
                      for form, f in made.items()}
            times = {form: [] for form in made}
            for turn in range(repeat + 1):
                for form, f in jitted.items():
                    begin = time.perf_counter()
                    jnp.asarray(f(x, kernel, y)).block_until_ready()
                    if turn:
                        times[form].append(time.perf_counter() - begin)
            print(f"    {name:10}" + "".join(f" {form} {giga / statistics.median(seconds):5.0f}"
                                              for form, seconds in times.items()), flush=True)


if __name__ == "__main__":
    main()
