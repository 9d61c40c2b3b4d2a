"""Files that are complete or absent, and signals that are collected."""

import ctypes
import os
import resource
import signal
import threading

import numpy as np
import pytest

from big_vision_lite.system.atomic import replacing, write_text
from big_vision_lite.system.cache import cached_array, cached_bytes, cached_file
from big_vision_lite.system.signals import collect_signals, hear_signals


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "é")
    with pytest.raises(ValueError), replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json" and path.read_text() == "é"
        raise ValueError
    assert path.read_text(encoding="utf-8") == "é" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as first, replacing(path) as second:  # two writers at once
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_errors_of_a_disk_name_the_file(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # beyond it writes fail, as on a full disk
    try:
        for path in (tmp_path / "run.json", tmp_path / "gone" / "run.json"):
            with pytest.raises(OSError) as caught:
                write_text(path, "x" * 5001)
            assert caught.value.filename == str(path) and list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_cache_keeps_the_first_folder_and_is_no_reason_to_fail(tmp_path):
    for content in ("first", "second"):
        with cached_file(tmp_path / "new" / "index") as temporary:
            temporary.mkdir()
            (temporary / "a").write_text(content)
    assert (tmp_path / "new" / "index" / "a").read_text() == "first"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["index"]
    (tmp_path / "file").write_text("")
    with cached_file(tmp_path / "file" / "index") as temporary:  # there cannot be such a folder
        temporary.write_text("dropped")


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path):
    path, made = tmp_path / "new" / "entry", []

    def make() -> bytes:
        made.append(b"content")
        return b"content"

    assert cached_bytes(path, make) == cached_bytes(path, make) == b"content" and len(made) == 1
    sound = path.read_bytes()
    flipped = [sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :] for i in range(len(sound))]
    cut = [sound[:i] for i in range(len(sound))]
    for count, damaged in enumerate((*flipped, *cut, sound + b"\0"), start=2):
        path.write_bytes(damaged)
        assert cached_bytes(path, make) == b"content" and path.read_bytes() == sound and len(made) == count
    (tmp_path / "file").write_text("")
    assert cached_bytes(tmp_path / "file" / "entry", make) == b"content"  # which cannot be written
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    for _ in range(2):
        read = cached_array(tmp_path / "array.npy", lambda: array)
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype


def test_signals_are_collected():
    handler = signal.getsignal(signal.SIGTERM)
    with collect_signals(signal.SIGTERM) as received:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == handler
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
    with collect_signals(signal.SIGTERM) as stops, collect_signals(
            signal.SIGINT, once=True, forward_as=signal.SIGTERM) as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # the second one acts at once
            signal.raise_signal(signal.SIGINT)
        assert interrupts == [signal.SIGINT] and stops == [signal.SIGTERM]


def test_a_signal_is_heard_while_the_main_thread_is_busy():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # zeros are an open mutex
    heard = []

    def tell(number: int) -> None:
        heard.append((number, list(received)))
        libc.pthread_mutex_unlock(mutex)

    with collect_signals(signal.SIGTERM) as received, hear_signals(tell):
        timers = [threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)),
                  threading.Timer(20, libc.pthread_mutex_unlock, (mutex,))]  # if nothing is heard
        for timer in timers:
            timer.start()
        for _ in range(2):  # the second one waits in C, so that no handler can run
            libc.pthread_mutex_lock(mutex)
        for timer in timers:
            timer.cancel()
    assert heard == [(signal.SIGTERM, [])] and received == [signal.SIGTERM]
    assert signal.set_wakeup_fd(-1) == -1
