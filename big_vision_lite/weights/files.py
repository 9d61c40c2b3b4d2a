"""Files of named arrays: safetensors, .npz and PyTorch's .pth, read without unpickling objects."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from big_vision_lite.errors import UserError, first_line
from big_vision_lite.system.atomic import write_bytes


def read_file(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by name; 16-bit floats as float32.

    Raises:
      UserError: there is no such file, its suffix is unknown, it is damaged or holds anything but arrays, or an array
        is not finite.
    """
    path = Path(path)
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _torch, ".pt": _torch}
    if path.suffix not in readers:
        raise UserError(f"weights {str(path)!r}: the name ends in {path.suffix!r}; expected {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"no weights file {str(path)!r}; for weights on Hugging Face, give hf:OWNER/NAME")
    tensors = readers[path.suffix](path)
    if not tensors:
        raise UserError(f"weights {str(path)!r} hold no arrays")
    for name, value in tensors.items():
        if value.dtype.kind not in "fiub":  # such as bfloat16, which is no numpy dtype
            tensors[name] = value = value.astype(np.float32)
        if value.dtype.kind == "f":
            if value.dtype == np.float16:
                tensors[name] = value.astype(np.float32)
            bad = np.count_nonzero(~np.isfinite(value))
            if bad:
                raise UserError(f"weights {str(path)!r}: {name!r} has {bad} of {value.size} values that are NaN or "
                                "infinite; take an earlier checkpoint")
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty for other formats, which have none.

    Raises:
      UserError: the file is damaged or missing.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors", error) from error


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

    try:
        # save() writes memory as it is, so transposed arrays must be copied.
        arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        write_bytes(path, save(arrays, dict(metadata) if metadata else None))
    except OSError as error:
        raise UserError(f"cannot write weights to {str(path)!r}: {error.strerror or error}") from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors", error) from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path):  # numpy takes other files for pickles, with a misleading error
            pass
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: file[name] for name in file.files}
        for name, value in tensors.items():
            if not isinstance(value, np.ndarray):  # numpy returns other members of the archive as bytes
                raise ValueError(f"{name!r} in it is not an array")
        return tensors
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"weights {str(path)!r} hold Python objects, which could run code when read; expected "
                            "only arrays") from error
        raise _damaged(path, "npz", error) from error


def _torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"weights {str(path)!r}: reading {path.suffix} needs PyTorch; pip install torch, or convert it "
                        "to .safetensors elsewhere") from error
    import pickle

    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"weights {str(path)!r} hold Python objects beside tensors (or are damaged), which could run "
                        "code when read; save model.state_dict() alone") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path, "PyTorch", error) from error
    if isinstance(contents, dict):  # training scripts save the network together with their optimiser
        state_dict = next((contents[key] for key in ("state_dict", "model") if isinstance(contents.get(key), dict)),
                          contents)
        tensors = {str(name).removeprefix("module."): value for name, value in state_dict.items()}
        if all(isinstance(value, torch.Tensor) for value in tensors.values()):
            return {name: _to_numpy(value) for name, value in tensors.items()}
    raise UserError(f"weights {str(path)!r}: expected a dict from names to tensors, as model.state_dict() gives")


def _to_numpy(tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(f"weights {str(path)!r} cannot be read as {kind}: {first_line(error)}; is it complete?")
