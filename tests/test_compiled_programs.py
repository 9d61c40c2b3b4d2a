"""Compiled programs are kept for later runs, also after a process was killed while it wrote one."""

import pytest

from big_vision_lite.commands.arguments import mend_compiled

lru_cache = pytest.importorskip("jax._src.lru_cache")  # JAX's own store, which it does not name in public


def test_a_program_whose_writing_was_cut(tmp_path):
    mend_compiled(tmp_path / "none yet")
    store = lru_cache.LRUCache(str(tmp_path), max_size=1 << 20)
    store.put("whole", b"1")
    store.put("cut", b"2")
    (tmp_path / "cut-atime").unlink()  # killed between the two files
    with pytest.raises(FileNotFoundError):  # the day JAX mends this itself, ours can go
        store.put("later", b"3")
    mend_compiled(tmp_path)
    store.put("later", b"3")
    assert [store.get(key) for key in ("whole", "cut", "later")] == [b"1", None, b"3"]
