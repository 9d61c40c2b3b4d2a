"""Outside data as declared types."""

import msgspec
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.system import parse


class _Entry(msgspec.Struct):
    id: int


def test_text_that_is_no_utf8_is_refused_even_in_fields_that_are_not_read(monkeypatch):
    for piece in (2**24, 3):
        monkeypatch.setattr(parse, "_PIECE", piece)
        assert parse.parse_json('{"id": 7, "other": "čaj"}', _Entry, "it") == _Entry(7)
        with pytest.raises(UserError, match="cannot read it: 'utf-8' codec can't decode"):
            parse.parse_json(b'{"id": 7, "other": "\xff\xc3"}', _Entry, "it")
