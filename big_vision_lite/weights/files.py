"""Files of named arrays: safetensors, .npz and PyTorch's .pth, read without unpickling objects."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from big_vision_lite.backbones.backbone import PixelNormalization
from big_vision_lite.errors import UserError, reading, writing
from big_vision_lite.system.atomic import write_bytes
from big_vision_lite.system.parse import parse_json, read_json
from big_vision_lite.weights.download import fetch
from big_vision_lite.weights.naming import naming_of

_OF_TORCH = (".pth", ".pt")
SUFFIXES = (".safetensors", ".npz", *_OF_TORCH)
"""Files that can be read."""
_KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""Types of safetensors that numpy knows; most others are meaningless without scales that are kept elsewhere."""
_NETWORKS = ("state_dict", "model", "model_state_dict")
"""Where training scripts keep the network in a .pth file; torchvision's and timm's, and that of PyTorch's tutorials."""
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")
"""Where they keep its moving average."""
_UNPACKED = 2**30
"""Bytes from which an archive that unpacks to over 100 times its size is refused; arrays of weights hardly compress."""

Triple = tuple[float, float, float]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Deviations = tuple[Positive, Positive, Positive]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a weights file holds."""

    arrays: dict[str, np.ndarray]
    """By name; `read_weights` gives floats as float32, all of them finite."""
    pixels: PixelNormalization | None = None
    """The pixel normalization, by the file's metadata, by timm's config.json beside it, or by its naming; None:
    unknown."""
    architecture: str | None = None
    """Its name, where the file or timm's config.json says it."""
    part: str = ""
    """Where in the file the network is, and what else there is; empty if it holds one network alone."""
    file: Path | None = None
    """Where the file is on this machine."""


class _TimmConfig(msgspec.Struct):
    """config.json beside the weights of a timm model; means and deviations of pixels in [0, 1]."""

    class Pretrained(msgspec.Struct):
        mean: Triple
        std: Deviations

    architecture: str
    pretrained_cfg: Pretrained | None = None


def read_weights(source: str, ema: bool = False) -> Weights:
    """The arrays of a weights file, and what it says about them.

    Args:
      source: a path, ``hf:OWNER/NAME`` or URL, see `fetch`.
      ema: take the moving average that a training script's .pth file holds beside the network.

    Raises:
      UserError: the file cannot be fetched; its suffix is unknown; it is damaged or holds anything but finite numbers;
        it is of an architecture that computes something else with arrays of the same names; it has no moving average.
    """
    path = fetch(source)
    if not path.is_file():
        raise UserError(f"no weights file {source!r}; for weights on Hugging Face, give hf:OWNER/NAME")
    if path.suffix not in SUFFIXES:
        raise UserError(f"weights {source!r}: the name ends in {path.suffix!r}; expected {', '.join(SUFFIXES)}")
    if ema and path.suffix not in _OF_TORCH:
        raise UserError(f"weights {source!r}: only .pth files hold a moving average beside the network; leave "
                        "--weights out")
    read = {".safetensors": _safetensors, ".npz": _npz}.get(path.suffix, partial(_torch, ema=ema))
    weights = _with_timm_config(read(path), path.with_name("config.json"))
    if not weights.arrays:
        raise UserError(f"weights {source!r} hold no arrays")
    naming, architecture = naming_of(weights.arrays), weights.architecture
    if naming and architecture and not re.fullmatch(naming.architectures, architecture.lower().partition(".")[0]):
        raise UserError(f"weights {source!r} are of architecture {architecture!r}, which may compute something else "
                        f"with arrays of these names; expected a plain {naming.title}")
    arrays = {name: _numbers(value, f"weights {source!r}: {name!r}") for name, value in weights.arrays.items()}
    return dataclasses.replace(weights, arrays=arrays, file=path,
                               pixels=weights.pixels or (naming and naming.pixels))


def _with_timm_config(weights: Weights, path: Path) -> Weights:
    """With what the file itself does not say. A config.json of another project says nothing here."""
    try:
        config = read_json(path, _TimmConfig)
    except UserError:
        return weights
    pixels, cfg = weights.pixels, config.pretrained_cfg
    if pixels is None and cfg is not None:
        pixels = PixelNormalization(*(tuple(round(255 * x, 4) for x in triple) for triple in (cfg.mean, cfg.std)))
    return dataclasses.replace(weights, pixels=pixels, architecture=weights.architecture or config.architecture)


def _numbers(value: np.ndarray, name: str) -> np.ndarray:
    """An array, floats as float32. Raises: UserError when it holds something else, or a float that is not finite."""
    if value.dtype.kind in "iub":
        return value
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":  # which is no numpy dtype
        raise UserError(f"{name} holds values of type {value.dtype.name}; expected numbers")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32, copy=False)
    bad = value.size - np.count_nonzero(np.isfinite(value))
    if bad:
        raise UserError(f"{name} has {bad} of {value.size} values that are NaN or infinite; take an earlier checkpoint")
    return value


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays to a .safetensors file, atomically, with ``metadata`` in its header.

    Raises:
      UserError: the name does not end in .safetensors, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"weights {str(path)!r}: expected a name that ends in .safetensors")
    from safetensors.numpy import save

    with writing(f"weights to {str(path)!r}"):
        # save() writes memory as it is, so transposed arrays must be copied.
        arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        write_bytes(path, save(arrays, dict(metadata) if metadata else None))


def _safetensors(path: Path) -> Weights:
    from safetensors import safe_open

    with _reading(path), safe_open(path, "np") as file:
        metadata = file.metadata() or {}
        for name in (names := file.keys()):
            if (kind := file.get_slice(name).get_dtype()) not in _KINDS:
                raise UserError(f"weights {str(path)!r}: {name!r} holds values of type {kind}; expected one of "
                                f"{', '.join(_KINDS)}")
        arrays = {name: file.get_tensor(name) for name in names}
    pixels = None
    if "pixels" in metadata:
        mean, std = parse_json(metadata["pixels"], tuple[Triple, Deviations], f"metadata 'pixels' of {str(path)!r}",
                               "expected [[mean of red, green, blue], [standard deviations]]")
        pixels = PixelNormalization(mean, std)
    return Weights(arrays, pixels, metadata.get("architecture"))


def _npz(path: Path) -> Weights:
    with _reading(path):
        _check_unpacked_size(path)  # refuses files that are no archives, too: numpy takes them for pickles
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise UserError(f"weights {str(path)!r} hold Python objects, which could run code when read; expected "
                            "only arrays") from error
        for name, value in arrays.items():
            if not isinstance(value, np.ndarray):  # numpy returns other members of the archive as bytes
                raise ValueError(f"{name!r} in it is not an array")
    return Weights(arrays)


def _torch(path: Path, ema: bool) -> Weights:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"weights {str(path)!r}: reading {path.suffix} needs PyTorch; pip install torch, or convert it "
                        "to .safetensors elsewhere") from error
    import pickle

    with _reading(path):
        if zipfile.is_zipfile(path):
            _check_unpacked_size(path)
        try:
            contents = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"weights {str(path)!r} hold Python objects beside tensors (or are damaged), which could "
                            "run code when read; save model.state_dict() alone") from error
    contents = contents if isinstance(contents, dict) else {}
    averages = [name for name in _AVERAGES if isinstance(contents.get(name), dict)]
    if ema and not averages:
        raise UserError(f"weights {str(path)!r} hold no moving average, which would be called "
                        f"{' or '.join(_AVERAGES)}; leave --weights out")
    part = next((name for name in (_AVERAGES if ema else _NETWORKS) if isinstance(contents.get(name), dict)), "")
    state_dict = contents[part] if part else contents
    if not state_dict or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise UserError(f"weights {str(path)!r}: expected a dict from names to tensors, as model.state_dict() gives"
                        + (f"; --weights ema takes {averages[0]}" if averages else ""))
    # Wrappers for several devices, for compilation and for averaging put their own name before each.
    arrays = {re.sub(r"^((module|_orig_mod)\.)+", "", str(name)): _to_numpy(value, f"{name!r} of weights {str(path)!r}")
              for name, value in state_dict.items()}
    architecture = contents.get("arch")
    if averages and not ema:
        part += f", without its moving average {averages[0]}, which --weights ema takes"
    return Weights(arrays, None, architecture if isinstance(architecture, str) else None, part)


def _to_numpy(tensor, name: str) -> np.ndarray:
    """Raises: UserError when the tensor is sparse, quantised, without values, or larger than what is stored of it."""
    with reading(name, "expected a dense tensor of numbers"):
        tensor = tensor.detach()
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"its shape is {tuple(tensor.shape)}, for which too few values are stored")
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _check_unpacked_size(path: Path) -> None:
    """Raises: ValueError, or BadZipFile when the file is no archive."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > max(_UNPACKED, 100 * path.stat().st_size):
        raise ValueError(f"it unpacks to {size:,} bytes, over 100 times its own size")


def _reading(path: Path) -> contextlib.AbstractContextManager:
    return reading(f"weights {str(path)!r} as {path.suffix}", "is it complete?")
