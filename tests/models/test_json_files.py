"""JSON files of a model folder, whole and broken."""

from __future__ import annotations

import pytest

from qwen3q.errors import ModelError
from qwen3q.models.json_files import read_object, read_optional


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "holds a list, not an object"),
    ],
)
@pytest.mark.parametrize("read", [read_object, read_optional])
def test_a_broken_file_is_named(tmp_path, read, content, says):
    path = tmp_path / "generation_config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"generation_config\.json {says}") as caught:
        read(path)
    assert caught.value.hint


def test_only_an_optional_file_may_be_absent(tmp_path):
    assert read_optional(tmp_path / "x.json") == {}
    with pytest.raises(ModelError, match=r"x\.json is missing"):
        read_object(tmp_path / "x.json")
