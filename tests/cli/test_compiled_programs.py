"""Compiled programs are cached for later runs, also after a process was killed while it wrote one."""

import pytest

from big_vision_lite.commands.setup import remove_incomplete_programs

lru_cache = pytest.importorskip("jax._src.lru_cache")  # JAX's own cache, which is not public


def test_a_program_whose_writing_was_cut(tmp_path):
    remove_incomplete_programs(tmp_path / "none yet")
    store = lru_cache.LRUCache(str(tmp_path), max_size=1 << 20)
    store.put("whole", b"1")
    store.put("cut", b"2")
    (tmp_path / "cut-atime").unlink()  # killed between the two files
    with pytest.raises(FileNotFoundError):  # when JAX no longer fails here, our function can go
        store.put("later", b"3")
    remove_incomplete_programs(tmp_path)
    store.put("later", b"3")
    assert [store.get(key) for key in ("whole", "cut", "later")] == [b"1", None, b"3"]
