"""Configs: Python files that return an ``Experiment``, and its resolved form as JSON.

``load("configs/x.py:depth=50,root=/photos")`` calls the file's ``get_config(depth=50, root="/photos")``. In JSON each
dataclass carries its class; reading accepts only dataclasses of this package (or of modules the caller allows),
rejects unknown fields and never runs the config file. Either way, fields are checked against their annotations.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from big_vision_lite.errors import UserError, first_line, nearest, reading
from big_vision_lite.system import parse
from big_vision_lite.system.fields import check_names, check_values
from big_vision_lite.system.paths import as_path

FORMAT = 2
"""Version of a run's config.json and run.json; no other can be read."""
_CLASS = "class"
KINDS = {"config": "train", "study": "study"}
"""What a file can describe, by a function get_KIND, and the command that takes it."""
PARSERS = ConstructorRegistry()
"""How tyro reads options and arguments: as always, but true, false and none may be lower case."""
_WORD = r"[A-Za-z_]\w*"
_ELEMENT = r"""(?:\s*'[^']*'\s*|\s*"[^"]*"\s*|[^,]*)"""
_ASSIGNMENT = re.compile(rf"\s*({_WORD})=({_ELEMENT}(?:,{_ELEMENT})*?)(?:,(?=\s*{_WORD}=)|$)", re.DOTALL)


@PARSERS.primitive_rule
def _lower_case(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    if info.type not in (bool, types.NoneType):
        return None
    values = {"true": True, "false": False} if info.type is bool else {"none": None}

    def read(words: list[str]) -> bool | None:
        if words[0].lower() not in values:
            raise ValueError(f"{words[0]!r}; expected {' or '.join(values)}")
        return values[words[0].lower()]

    return PrimitiveConstructorSpec(1, "|".join(values), read, lambda value: type(value) is info.type,
                                    lambda value: [str(value).lower()])


def load(spec: str, kind: str = "config", **arguments: Any) -> Any:
    """The experiment, or the study, that a file describes.

    Args:
      spec: ``FILE.py`` or ``FILE.py:argument=value,argument=value``; values are read by the annotations of
        ``get_config``, see `parse_assignments`. A config that comes with this package needs only its name, see
        `find_file`.
      kind: one of `KINDS`.
      arguments: further arguments, as values.

    Raises:
      UserError: no such file, argument or value (the message names the nearest valid ones), or an error in the file
        (the message names its line).
    """
    path, text = find_file(spec, kind)
    name = f"bvl_{kind}_" + re.sub(r"\W", "_", str(path.with_suffix("")))
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses defined in a config look up their own module
    with _running(path):
        module_spec.loader.exec_module(module)
    function = getattr(module, f"get_{kind}", None)
    if function is None:
        raise UserError(f"{path} has no function get_{kind}; a {kind} is a file with get_{kind}(...)"
                        + "".join(f"; bvl {command} takes one with get_{other}" for other, command in KINDS.items()
                                  if hasattr(module, f"get_{other}")))
    with _running(path):
        parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    hints = {name: hints.get(name, str) for name in parameters}
    values = parse_assignments(text, hints, str(path), "argument") | arguments
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise UserError(f"{path} needs {', '.join(m + '=...' for m in missing)}; give it as {path}:{missing[0]}=VALUE")
    with _running(path):
        return function(**values)


@contextlib.contextmanager
def _running(path: Path) -> Iterator[None]:
    """Turn what a file's own code raises into one line that names the line of the file. Raises: UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        file = str(path.absolute())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines.append(error.lineno)
        *_, text = traceback.TracebackException.from_exception(error).format_exception_only()
        raise UserError(f"{path}{f', line {lines[-1]}' if lines else ''}: {' '.join(text.split())[:300]}"
                        f"{_nearest_field(error)}; --debug shows the traceback") from error


def _nearest_field(error: BaseException) -> str:
    """A hint for a misspelt field of a dataclass."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kinds = (vars(module).get(found[1]) for module in list(sys.modules.values()) if type(module) is types.ModuleType
             ) if found else ()
    kind = next(filter(dataclasses.is_dataclass, kinds), None)
    return nearest(found[2], [field.name for field in dataclasses.fields(kind)]) if kind else ""


def split_spec(spec: str) -> tuple[Path, str]:
    """The file of ``FILE.py:arguments`` or ``NAME:arguments``, and the arguments."""
    name, _, arguments = spec.partition(".py:" if ".py:" in spec or spec.endswith(".py") else ":")
    return Path(name if name.endswith(".py") else name + ".py"), arguments


def find_file(spec: str, kind: str = "config") -> tuple[Path, str]:
    """The file of ``FILE.py:arguments``, or of ``NAME:arguments`` for a config that comes with this package, and the
    arguments. Raises: UserError when there is no such file."""
    path, arguments = split_spec(spec)
    if path.is_file():
        return path, arguments
    if known := _known_file(path, kind):
        return known, arguments
    if kind == "config" and Path(spec).is_dir():
        raise UserError(f"{spec!r} is a folder, not a config; to train on a folder of photos: "
                        f"bvl train configs/image_folder.py:root={spec}; or from pretrained weights: bvl finetune "
                        f"{spec} --from runs/quickstart")
    candidates = {str(p) for p in (*path.parent.glob("*.py"), *Path("configs").rglob("*.py"))}
    candidates |= {f"configs/{p.relative_to(known_configs())}" for p in known_configs().rglob("*.py")}
    raise UserError(f"no {kind} file {str(path)!r}" + nearest(str(path), candidates))


def known_configs() -> Path:
    """The folder of the configs that come with this package: within it, or beside it in a clone of the repository."""
    package = Path(__file__).parent
    return next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()),
                package / "configs")


def _known_file(path: Path, kind: str) -> Path | None:
    """The file of `known_configs` at this path, with or without "configs/"; or of this name in any of its folders, if
    there is one alone of this kind."""
    name = path.as_posix().removeprefix("configs/")
    if not re.fullmatch(r"\w+(/\w+)*\.py", name):
        return None
    exact = known_configs() / name
    found = [exact] if exact.is_file() else []
    if "/" not in name:
        found += sorted(known_configs().glob(f"*/{name}"))
    fitting = [file for file in found if (info := describe(file)) and info[0] == kind]
    if exact in fitting or len(fitting) == 1:
        return exact if exact in fitting else fitting[0]
    return exact if exact.is_file() else None


def parse_assignments(text: str, hints: Mapping[str, Any], owner: str, what: str) -> dict[str, Any]:
    """``name=value,name=value`` as values of annotated types. A comma ends a value where ``name=`` follows; in quotes,
    a value may hold that too: ``init='runs/study/frozen,images=200',steps=500``.

    Args:
      owner: what has these names, for messages.
      what: they are its arguments or fields.

    Raises:
      UserError: a name that is not among the hints, a value of another type, or several assignments that together name
        a file.
    """
    values, starts, position = {}, {}, 0
    while position < len(text):
        assignment = _ASSIGNMENT.match(text, position)
        if assignment is None:
            raise UserError(f"{owner}: {text[position:].strip()!r} has no value; expected {what}=value,{what}=value")
        (name, value), position = assignment.groups(), assignment.end()
        for earlier, start in starts.items():
            path = text[start:assignment.end(2)]
            if _exists(path):
                raise UserError(f"{owner}: there is a file or folder {path!r}; as one value it needs quotes: "
                                f"{earlier}='{path}'")
        starts[name] = assignment.start(2)
        if name not in hints:
            raise UserError(f"{owner} has no {what} {name!r}" + nearest(name, hints))
        try:
            values[name] = parse_value(value.strip(), hints[name])
        except ValueError:
            raise UserError(f"{owner}: {name}={value!r} is not {inspect.formatannotation(hints[name])}") from None
        if values[name] == "":
            raise UserError(f"{owner}: {name}= has no value; expected {name}=value, or leave it out")
    return values


def parse_value(text: str, hint: Any) -> Any:
    """Text as a value of an annotated type, read by tyro as it reads options. Of a union, stricter members are tried
    before str, and a tuple last, for text with commas. Quotes around a value or an element are removed.
    Raises: ValueError."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    members = sorted(members, key=lambda member: (typing.get_origin(member) is tuple, member is str))
    union, words = typing.Union[tuple(members)], [_unquoted(text)]  # noqa: UP007
    if typing.get_origin(members[-1]) is tuple:
        words = [_unquoted(word) for word in re.findall(_ELEMENT, text.strip("()")) if word]
    with PARSERS:
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(union, set()))
    if not isinstance(spec, PrimitiveConstructorSpec) or not set(words) <= set(spec.choices or words):
        raise ValueError(text)
    return spec.instance_from_str(words)


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(r"""\s*('[^']*'|"[^"]*")\s*""", text)
    return quoted[1][1:-1] if quoted else text


def _exists(path: str) -> bool:
    with contextlib.suppress(OSError):  # too long for a name
        return Path(path).expanduser().exists()
    return False


class Argument(typing.NamedTuple):
    """An argument of a ``get_config`` or ``get_study``, as its source says."""

    name: str
    type: str
    default: str | None
    """None: it must be given."""
    help: str


def describe(path: Path) -> tuple[str, str, list[Argument]] | None:
    """Read what a config or study says about itself, without running it.

    Returns:
      One of `KINDS`, the first line of the docstring, and the arguments; None for other files.

    Raises:
      UserError: the file cannot be read, or is not Python.
    """
    with reading(path, errors=(SyntaxError, ValueError, RecursionError, MemoryError)):
        tree = ast.parse(parse.read_text(path), str(path))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    kind = next((kind for kind in KINDS if f"get_{kind}" in functions), None)
    if kind is None:
        return None
    function = functions[f"get_{kind}"]
    helps = dict(re.findall(r"^ *(\w+): (.*(?:\n {8,}.*)*)", ast.get_docstring(function, clean=False) or "", re.M))
    arguments, described = function.args, []
    defaults = [*[None] * (len(arguments.args) - len(arguments.defaults)), *arguments.defaults, *arguments.kw_defaults]
    for argument, default in zip([*arguments.args, *arguments.kwonlyargs], defaults, strict=True):
        described.append(Argument(argument.arg, ast.unparse(argument.annotation) if argument.annotation else "str",
                              default and ast.unparse(default), " ".join(helps.get(argument.arg, "").split())))
    return kind, (ast.get_docstring(tree) or "").partition("\n")[0], described


def to_json(value: Any) -> Any:
    """A dataclass tree as JSON values; each dataclass carries its class as ``module:name``."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_CLASS: f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a config cannot hold a {type(value).__name__}: {value!r}")


def identity(value: Any) -> Any:
    """What distinguishes a dataclass tree, as JSON values: as `to_json`, but without fields at their defaults and
    without modules, so that neither a new field nor a move of a class changes it."""
    if dataclasses.is_dataclass(value):
        fields = {}
        for field in dataclasses.fields(value):
            default = field.default_factory() if callable(field.default_factory) else field.default
            if (content := getattr(value, field.name)) != default:
                fields[field.name] = identity(content)
        return {_CLASS: type(value).__qualname__, **fields}
    if isinstance(value, tuple | list):
        return [identity(v) for v in value]
    if isinstance(value, dict):
        return {str(k): identity(v) for k, v in value.items()}
    return to_json(value)


def from_json(value: Any, allowed: Sequence[str] = (), source: object = "config") -> Any:
    """The inverse of ``to_json``; lists become tuples.

    Args:
      allowed: modules beside this package whose dataclasses may be built.
      source: where the value comes from, for messages.

    Raises:
      UserError: a class that is not allowed or not a dataclass, a field it does not have, or a value of another type
        than the field's annotation.
    """
    if isinstance(value, list):
        return tuple(from_json(v, allowed, source) for v in value)
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get(_CLASS), str):  # a plain dict, which may have this key too
        return {k: from_json(v, allowed, source) for k, v in value.items()}
    kind = _find_class(value[_CLASS], allowed, source)
    fields = {k: from_json(v, allowed, source) for k, v in value.items() if k != _CLASS}
    try:
        check_names(kind, fields)
        check_values(kind, fields)
        return kind(**fields)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # values of the right types that its own checks choke on
        raise UserError(f"{source}: {kind.__name__}: {first_line(error)}") from error


def _find_class(name: str, allowed: Sequence[str], source: object) -> type:
    module, _, qualified = name.partition(":")
    if module.split(".")[0] != __package__ and module not in allowed:
        raise UserError(f"{source}: {name!r} is outside {__package__}; allow its module with --import {module}")
    try:
        kind: Any = importlib.import_module(module)
        for part in qualified.split("."):
            kind = getattr(kind, part)
    except Exception:  # what the import of a module raises, or that of a name that no module can have
        raise UserError(f"{source}: there is no {name!r} in this version of {__package__}") from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module
            and not inspect.isabstract(kind)):
        raise UserError(f"{source}: {name!r} is not a dataclass of its module")
    return kind


def dumps(experiment: Any) -> str:
    """The text of an experiment's config.json."""
    return json.dumps({"format": FORMAT, **to_json(experiment)}, indent=2) + "\n"


def read(path: Path, allowed: Sequence[str] = ()) -> Any:
    """The experiment in a config.json. Raises: UserError as `read_json` and `from_json` do."""
    with reading(path, errors=RecursionError):
        return from_json(read_json(path), allowed, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON values of a config.json, without its format.

    Raises:
      UserError: the file is missing, damaged or of another format.
    """
    values = parse.read_json(as_path(path), dict[str, Any], "a run folder holds one")
    check_format(values, path)
    return {key: value for key, value in values.items() if key != "format"}


def check_format(values: Mapping[str, Any], path: Path) -> None:
    """Raises: UserError when a config.json or run.json has another format than `FORMAT`, or none."""
    version = values.get("format", 1)
    if version != FORMAT:
        before = " (before 0.1.0)" if version == 1 else ""
        raise UserError(f"{path} has format {version}{before}; this version reads {FORMAT}; train the run anew")


def with_defaults(saved: Any) -> Any:
    """A saved config, with fields added to its classes since at their defaults, which change nothing."""
    with contextlib.suppress(UserError):  # classes defined in a config file, or removed since
        return to_json(from_json(saved))
    return saved


def differences(old: Any, new: Any, ignore: Sequence[str] = (), at: str = "") -> list[str]:
    """Where two JSON trees differ, as ``field: old -> new``, without the ignored fields and what is below them."""
    if at in ignore:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys((*old, *new)))
        return [d for k in keys for d in differences(old.get(k), new.get(k), ignore, f"{at}.{k}".lstrip("."))]
    return [] if old == new else [f"{at}: {json.dumps(old)} -> {json.dumps(new)}"]


def backbone_of(init: str | None) -> Any:
    """The backbone of the run in a folder, for a config that starts from it; None when ``init`` is not a run.

    Raises:
      UserError: as `read`.
    """
    path = as_path(Path(init).expanduser()) / "config.json" if init else None
    return read(path).backbone if path is not None and path.is_file() else None
