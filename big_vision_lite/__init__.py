"""big_vision_lite: how much better does vision get with more data?

What a notebook needs is here, and documented in `big_vision_lite.api`; it is imported when it is first used.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["FittedLaw", "Run", "UserError", "advise", "fit_law", "load", "train"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
