"""Eight CPU devices for every test; types and shapes in signatures are checked at each call."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; commands inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Tests compile much and compute little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# Read when gcsfs is first imported: by default it asks for folders by a protocol that the store of the tests lacks.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

import tempfile

_CACHE = tempfile.TemporaryDirectory()
os.environ["BVL_CACHE"] = _CACHE.name  # nothing cached by earlier runs may help a test

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook("big_vision_lite", "typechecker.check")

import contextlib  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402


@pytest.fixture
def strict():
    """Makes mixed dtypes and implicit broadcasting over ranks errors: our own functions must not need them."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """For modules whose runs compile mostly the same small programs."""
    old = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", old[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", old[1])
    compilation_cache.reset_cache()
