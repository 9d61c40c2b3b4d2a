"""What the commands share: how configs and options are parsed, and how their help is shown."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from big_vision_lite import config as configs
from big_vision_lite.errors import UserError

Options = TypeVar("Options")
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Folder of a run.")]
Checkpoint = Annotated[str, tyro.conf.arg(
    metavar="best|last|STEP", help="Which one to use: best by the main metric (see keep_best), or the newest.")]
Imports = Annotated[tuple[str, ...], tyro.conf.arg(
    name="import", metavar="[MODULE ...]", help="Modules outside this package that classes in configs come from.")]
Source = Annotated[str, tyro.conf.arg(metavar="SOURCE")]
HELP = ("-h", "--help")
COMMON_FIELDS = ("steps", "train.batch_size", "optimizer.learning_rate", "optimizer.weight_decay", "ema", "seed",
                 "eval_every", "save_every", "grad_accum_steps", "transfer.init", "transfer.freeze", "train.workers",
                 "mesh.fsdp")
"""Fields of an experiment that its help shows; --help-all shows all."""


def parse(kind: type[Options], arguments: list[str], program: str, default: Options | None = None,
          description: str | None = None) -> Options:
    """Parse arguments as ``kind``. Exits after printing help, for --help.

    Raises:
      UserError: an argument is missing, unknown or no value of its type; names the nearest valid ones.
    """
    given = {} if default is None else {"default": default}

    def cli() -> Options:
        return tyro.cli(kind, args=arguments, prog=program, description=description, registry=configs.PARSERS,
                        config=(tyro.conf.AvoidSubcommands,), **given)

    if not set(HELP).isdisjoint(arguments):
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            cli()
        for line in re.sub(r"\n{3,}", "\n\n", printed.getvalue().rstrip()).splitlines():
            print(line.rstrip() if line.startswith(" ") else textwrap.fill(line, 80))  # tyro wraps indented lines alone
        raise SystemExit(0)
    with on_one_line(program):
        try:
            return cli()
        except SystemError:  # before CPython 3.11.8, threads that parse sources at once disturb each other (gh-106905)
            return cli()


@contextlib.contextmanager
def on_one_line(program: str) -> Iterator[None]:
    """Turn the box that tyro prints about wrong arguments into a UserError: its first part, and the arguments of the
    others."""
    try:
        with contextlib.redirect_stderr(io.StringIO()) as box:
            yield
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip("│ ") for line in box.getvalue().splitlines() if line.startswith("│")]
        message, *others = (list(part) for rule, part in itertools.groupby(lines, lambda line: line.startswith("───"))
                            if not rule)
        similar = [line.split()[0] for part in others for line in part if line.startswith("--")]
        hint = f"; did you mean {' or '.join(similar[:3])}?" if similar and others[0][0].startswith("Perhaps") else ""
        wrong = textwrap.shorten(" ".join(message), 1000, placeholder=" ...").rstrip(".")
        raise UserError(f"{wrong}{hint}; see {program} --help") from None


def checkpoint_of(text: str) -> int | Literal["best", "last"]:
    """The choice that --checkpoint stands for. Raises: UserError when it is none."""
    if text == "best" or text == "last":
        return text
    if not text.isdecimal():
        raise UserError(f"--checkpoint {text!r}; expected best, last or the step of a checkpoint")
    return int(text)


def require_config(arguments: list[str], command: str) -> str:
    """The CONFIG among a command's arguments. Raises: UserError when it is not the first."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"bvl {command} needs a config: bvl {command} configs/quickstart.py")
    return arguments[0]


def run_name(spec: str) -> str:
    """The name that a config or study gives its folder: that of its file."""
    return configs.split_spec(spec)[0].stem


def parse_with_config(kind: type[Options], arguments: list[str], command: str,
                      processes: bool = False) -> tuple[Any, ...]:
    """Parse ``CONFIG [options] [overrides of the experiment's fields]``.

    Args:
      kind: a dataclass of the command's own options.
      processes: whether the command also takes the options of `training.distributed.Processes`.

    Returns:
      The experiment, the command's options and, with ``processes``, the `Processes`.

    Raises:
      UserError: there is no CONFIG, it returns no experiment, or as `config.load`.
    """
    if arguments and arguments[0] in HELP:
        parse(kind, ["--help"], f"bvl {command} CONFIG", description=f"{kind.__doc__}\n\n`bvl {command} CONFIG --help` "
              "shows a config's arguments and the most used fields, --help-all all fields.")
    spec, overrides = require_config(arguments, command), arguments[1:]
    program, help_wanted = f"bvl {command} {spec}", not set(HELP).isdisjoint(overrides)
    if help_wanted:
        print_arguments(spec)
    from big_vision_lite.experiment import load_experiment

    try:
        experiment = load_experiment(spec)
    except UserError as error:  # such as a missing argument
        if help_wanted:
            parse(kind, ["--help"], program, description=f"{kind.__doc__}\n\nFor the fields of the experiment: {error}")
        raise
    workdir = {"workdir": Path("runs") / run_name(spec)} if hasattr(kind, "workdir") else {}
    values = [experiment, kind(**workdir)]
    if help_wanted:
        _print_common_options(values[1], experiment, program)
    if processes:
        from big_vision_lite.training.distributed import Processes

        values.append(Processes())
    everything = dataclasses.make_dataclass(
        "Everything", [(f"part{i}", Annotated[type(value), tyro.conf.arg(name="")]) for i, value in enumerate(values)])
    overrides = ["--help" if word == "--help-all" else word for word in overrides]
    parsed = parse(everything, overrides, program, everything(*values), kind.__doc__)
    return tuple(vars(parsed).values())


def print_arguments(spec: str, kind: str = "config") -> None:
    """Print what the file of a config or study says about itself and its arguments."""
    path, values = configs.find_file(spec, kind)
    _, summary, arguments = configs.describe(path) or (kind, "", [])
    file = spec.removesuffix(values).removesuffix(":")
    print(textwrap.fill(f"{file}: {summary}", 80))
    if arguments:
        print(f"\nArguments, given as {file}:{arguments[0].name}=VALUE,...")
    for argument in arguments:
        default = f" = {argument.default}" if argument.default else " (required)"
        print(f"  {argument.name}: {argument.type}{default}")
        if argument.help:
            print(textwrap.fill(argument.help, 80, initial_indent=" " * 8, subsequent_indent=" " * 8))
    print()


def _print_common_options(options: Any, experiment: Any, program: str) -> None:
    """Print help for a command's options and `COMMON_FIELDS`, as far as the experiment has them, and exit."""
    fields = [("options", Annotated[type(options), tyro.conf.arg(name="")], options)]
    for path in COMMON_FIELDS:
        *parents, name = path.split(".")
        owner = experiment
        for parent in parents:
            owner = getattr(owner, parent)
        if hasattr(owner, name):
            option = tyro.conf.arg(name=path.replace("_", "-"), help=_field_help(type(owner), name))
            fields.append((path.replace(".", "_"), Annotated[typing.get_type_hints(type(owner))[name], option],
                           getattr(owner, name)))
    common = dataclasses.make_dataclass("Common", [(name, hint) for name, hint, _ in fields])
    parse(common, ["--help"], program, common(*(value for *_, value in fields)),
          f"{type(options).__doc__}\n\n--help-all shows all fields of the experiment.")


def _field_help(kind: type, field: str) -> str:
    """The docstring below a dataclass's field."""
    owner = next(base for base in kind.__mro__ if field in vars(base).get("__annotations__", {}))
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
    texts = {statement.target.id: after.value.value for statement, after in itertools.pairwise(body)
             if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr)}
    return " ".join(texts.get(field, "").split())
