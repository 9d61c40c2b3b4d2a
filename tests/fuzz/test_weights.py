"""Files of weights; the independent readings are safetensors' and numpy's."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from fuzz import harness
from fuzz.harness import Case
from fuzz.made import special
from fuzz.mutate import TEXTS, json_text, of_bytes, of_json, pick

WIDTH, CLASSES = 4, 3
TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def resnet() -> dict[str, np.ndarray]:
    """A ResNet-10 of an eighth of the width under torchvision's names."""
    rng, arrays = np.random.default_rng(0), {}

    def convolution(name: str, into: int, out: int, size: int) -> None:
        arrays[f"{name}.weight"] = rng.standard_normal((out, into, size, size), np.float32)

    def norm(name: str, size: int) -> None:
        for field in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{name}.{field}"] = rng.random(size, np.float32) + 0.1
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    convolution("conv1", 3, WIDTH, 7)
    norm("bn1", WIDTH)
    into = WIDTH
    for layer in (1, 2, 3, 4):
        out, block = WIDTH * 2 ** (layer - 1), f"layer{layer}.0"
        for k, (first, second) in enumerate(((into, out), (out, out)), 1):
            convolution(f"{block}.conv{k}", first, second, 3)
            norm(f"{block}.bn{k}", second)
        if layer > 1:
            convolution(f"{block}.downsample.0", into, out, 1)
            norm(f"{block}.downsample.1", out)
        into = out
    arrays["fc.weight"] = rng.standard_normal((CLASSES, into), np.float32)
    arrays["fc.bias"] = rng.standard_normal(CLASSES, np.float32)
    return arrays


def safetensors(arrays: dict[str, np.ndarray], metadata=None, change=None) -> bytes:
    """A file of these arrays; ``change`` gets its header as a dict and returns another."""
    header, body = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, value in arrays.items():
        data = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": TYPES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json_text(header if change is None else change(header))
    return struct.pack("<Q", len(text)) + text + body


def npz(arrays: dict[str, np.ndarray], **more: bytes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, data in more.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(64)


class Trap:
    """Unpickled, it makes the file that the harness looks for."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def pth(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def but(**changes) -> dict[str, np.ndarray]:
    """The network with some arrays replaced, or left out by None; ``__`` in a name stands for a point."""
    arrays = resnet() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in arrays.items() if value is not None}


def header(name: str, field: str, value):
    def change(values):
        values[name][field] = value
        return values

    return lambda: safetensors(resnet(), change=change)


BY_HAND: tuple[tuple[str, object], ...] = (
    *(
        ("x.safetensors", make)
        for make in (
            lambda: b"",
            lambda: bytes(8),
            lambda: struct.pack("<Q", 2**63),
            lambda: struct.pack("<Q", 10) + b"{}",
            lambda: struct.pack("<Q", 2) + b"{}",
            lambda: struct.pack("<Q", 2**40) + b"{}",
            lambda: struct.pack("<Q", 10**8) + b"[" * 10**8,
            lambda: struct.pack("<Q", 4) + b"null",
            lambda: b"<html>" * 99,
            lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            lambda: safetensors({}),
            lambda: safetensors({"x": np.zeros(3, np.float32)}),
            lambda: safetensors(but(bn1__running_var=-np.ones(WIDTH, np.float32))),
            lambda: safetensors(but(fc__weight=resnet()["fc.weight"].T)),
            lambda: safetensors(but(fc__bias=None)),
            lambda: safetensors(but(fc__weight=None)),
            lambda: safetensors(but(fc__weight=None, fc__bias=None)),
            lambda: safetensors(but(conv1__weight=np.zeros((WIDTH, 3, 3, 3), np.float32))),
            lambda: safetensors(but(conv1__weight=None)),
            lambda: safetensors(but(conv1__weight=np.zeros((0, 3, 7, 7), np.float32))),
            lambda: safetensors(but(conv1__weight=np.float32(3))),
            lambda: safetensors(but(bn1__weight=np.full(WIDTH, np.nan, np.float32))),
            lambda: safetensors(but(bn1__bias=np.full(WIDTH, np.inf, np.float32))),
            lambda: safetensors(but(bn1__weight=np.ones(WIDTH, np.float16))),
            lambda: safetensors(but(bn1__weight=np.ones(WIDTH, np.int64))),
            lambda: safetensors(but(bn1__weight=np.ones(WIDTH, bool))),
            lambda: safetensors(but(bn1__weight=np.full(WIDTH, 1e300))),
            lambda: safetensors(but(more=np.ones(3))),
            lambda: safetensors(but(bn1__num_batches_tracked=np.ones(5))),
            lambda: safetensors(but(**{"layer1__1__conv1__weight": np.ones((4, 4, 3, 3), np.float32)})),
            lambda: safetensors({f"module.{name}": value for name, value in resnet().items()}),
            lambda: safetensors(but(fc__bias=np.zeros(4, np.float32))),
            lambda: safetensors({name: np.zeros(value.shape, np.float32) for name, value in resnet().items()}),
            *(
                header("conv1.weight", "dtype", value)
                for value in ("F8_E4M3", "F8_E5M2", "BF16", "U64", "C64", "x", "", None, 3, ["F32"])
            ),
            *(
                header("conv1.weight", "shape", value)
                for value in (
                    [2**62, 4],
                    [2**31, 2**31, 2**31],
                    [-4, 3, 7, 7],
                    [4, 3, 49],
                    [588],
                    [],
                    None,
                    "x",
                    [4.0, 3, 7, 7],
                    [4, 3, 7, 7, 1],
                )
            ),
            *(
                header("conv1.weight", "data_offsets", value)
                for value in (
                    [0, 0],
                    [0, 2**62],
                    [2352, 0],
                    [-1, 2351],
                    [0],
                    None,
                    [0, 2352, 3],
                    [1, 2353],
                    [0.0, 2352.0],
                )
            ),
        )
    ),
    *(
        ("x.safetensors", lambda value=value: safetensors(resnet(), {"pixels": value}))
        for value in (
            "x",
            "[]",
            "{}",
            "[[0, 0, 0], [1, 1, 1]]",
            "[[0, 0, 0], [0, 0, 0]]",
            "[[0, 0, 0], [-1, 1, 1]]",
            "[[0], [1]]",
            '["a", "b"]',
            "[[0, 0, NaN], [1, 1, 1]]",
            "[[0, 0, 0]]",
            "[[1e400, 0, 0], [1, 1, 1]]",
            '[["0", 0, 0], [1, 1, 1]]',
            "null",
            "[" * 9000,
            "[[0, 0, 0], [1, 1, 1], 3]",
            "",
            "[[true, 0, 0], [1, 1, 1]]",
        )
    ),
    *(
        ("x.safetensors", lambda value=value: safetensors(resnet(), value))
        for value in (
            {"pixels": 3},
            [],
            "x",
            {"a": {"b": 1}},
            {"format": "pt"},
            {"\ud800": "x"},
            {"architecture": "resnetaa50"},
            {"x": "y" * 10**6},
        )
    ),
    *(
        ("x.npz", make)
        for make in (
            lambda: b"",
            lambda: b"PK\3\4" + bytes(99),
            lambda: npz(resnet()),
            lambda: npz(resnet(), **{"x.txt": b"no array"}),
            lambda: npz({}),
            lambda: npz(but(fc__bias=np.array([Trap()], object))),
            lambda: npz(resnet(), **{"../evil.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16,)}")}),
            lambda: npz(
                resnet(), **{"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,)}")}
            ),
            lambda: npz(resnet(), **{"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (500000000,)}")}),
            lambda: npz(resnet(), **{"x.npy": npy("{'descr': 'O', 'fortran_order': False, 'shape': (1,)}")}),
            lambda: npz(resnet(), **{"x.npy": npy("__import__('pathlib').Path('sprung').touch()")}),
            lambda: npz(resnet(), **{"x.npy": npy("[" * 100)}),
            lambda: npz(resnet(), **{"x.npy": npy("{'descr': '<f4', 'fortran_order': 3, 'shape': (-1,)}")}),
            lambda: npz(resnet(), **{"x.npy": b""}),
            lambda: npz(but(bn1__weight=np.array(["a"] * WIDTH))),
            lambda: npz(but(bn1__weight=np.ones(WIDTH, complex))),
            lambda: npz(but(bn1__weight=np.ones(WIDTH, "M8[s]"))),
            lambda: npz(but(bn1__weight=np.ones(WIDTH, [("a", "f4")]))),
            lambda: pickle.dumps(Trap()),
            lambda: npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16,)}"),
        )
    ),
    *(
        ("x.pth", make)
        for make in (
            lambda: b"",
            lambda: pickle.dumps(Trap()),
            lambda: pth(pickle.dumps(Trap())),
            lambda: pth(b""),
            lambda: pth(pickle.dumps({"conv1.weight": 3})),
            lambda: b"\x80\x02",
            lambda: pth(pickle.dumps(resnet())),
            lambda: pickle.dumps(resnet()),
            lambda: pth(b"cos\nsystem\n(S'touch sprung'\ntR."),
            lambda: b"(" * 9999,
        )
    ),
    ("x.bin", lambda: b""),
    ("x", lambda: b""),
    ("x.SAFETENSORS", lambda: safetensors(resnet())),
    ("x.pt", lambda: safetensors(resnet())),
    ("x.npz", lambda: safetensors(resnet())),
    ("x.safetensors", lambda: npz(resnet())),
)


def weights(rng: np.random.Generator, number: int, folder: Path) -> Case:
    if number < len(BY_HAND):
        name, make = BY_HAND[number]
        data, what = make(), f"by hand {number}"
    else:
        name = pick(rng, ("x.safetensors", "x.safetensors", "x.safetensors", "x.npz"))
        kind = pick(rng, ("bytes", "bytes", "header", "arrays"))
        if kind == "header" and name == "x.safetensors":
            done = []

            def change(values):
                values, what = of_json(rng, values)
                done.append(what)
                return values

            data = safetensors(resnet(), {"pixels": "[[0, 0, 0], [1, 1, 1]]"}, change)
            what = done[0]
        elif kind == "arrays":
            arrays = resnet()
            array = pick(rng, sorted(arrays))
            value = arrays.pop(array)
            arrays |= pick(
                rng,
                (
                    {},
                    {f"{array}x": value},
                    {array: value.T},
                    {array: value.astype(pick(rng, ("f8", "f2", "i4", "?")))},
                    {array: value[..., None]},
                    {array: value.ravel()},
                    {array: np.concatenate([np.atleast_1d(value)] * 2)},
                    {array: value.ravel()[:0]},
                ),
            )
            data, what = (npz if name == "x.npz" else safetensors)(arrays), f"{array} changed"
        else:
            data, what = of_bytes(rng, (npz if name == "x.npz" else safetensors)(resnet()))
    if rng.random() < 0.03:
        special(pick(rng, ("pipe", "zero", "folder")), folder / name)
    else:
        (folder / name).write_bytes(data)
    more = ()
    if rng.random() < 0.1:
        (folder / "names.txt").write_text(
            pick(rng, ("a\nb\nc\n", "a\nb\n", "a\na\nc\n", "", "a\nb\nc\nd\n", *TEXTS[:12])), errors="replace"
        )
        more = ("--classes", "names.txt")
    return Case(
        ("weights", "import", name, "--out", "run", *more),
        (name, "names.txt", "'x'"),
        f"{name} {what} {more}",
        check="fuzz.test_weights:equals_numpy",
    )


def equals_numpy(folder: Path, arguments: list[str]) -> str | None:
    """Exported again under the same names, the arrays are those of the file."""
    from safetensors.numpy import load_file

    from big_vision_lite.cli import main

    if main(["weights", "export", "run", "--to", "torchvision", "--out", "again.safetensors"]):
        return "the run cannot be exported"
    file, again = folder / arguments[2], load_file(folder / "again.safetensors")
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    else:
        arrays = load_file(file)
    arrays = {name: value for name, value in arrays.items() if not name.endswith("num_batches_tracked")}
    if "fc.weight" not in arrays:  # then the run has a head of one class
        again = {name: value for name, value in again.items() if not name.startswith("fc.")}
    if set(arrays) != set(again):
        return f"names {sorted(set(arrays) ^ set(again))}"
    for name, value in arrays.items():
        if value.shape != again[name].shape or not np.array_equal(value.astype(np.float32), again[name]):
            return f"{name} {value.shape} differs"
        if not np.isfinite(again[name]).all() or (name.endswith("running_var") and (again[name] < 0).any()):
            return f"{name} has values of no network"
    return None


@harness.formats(260, 8, weights=weights)
def test_weights(worker, tmp_path, record_property, name, make, seed, number):
    harness.check(worker, tmp_path / "input", name, make, seed, number, record_property)
