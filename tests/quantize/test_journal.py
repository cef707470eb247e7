"""The journal: what it keeps, what a kill may leave of it, what it refuses to continue."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3q.errors import UsageError
from qwen3q.quantize.journal import Unit, continue_journal, start_journal

FINGERPRINT = {"model": "abc", "options": '{"damping":0.01}'}
UNITS = [
    Unit("layer 0", {"a": "00"}, ({"name": "a", "error": 0.1 + 0.2, "seconds": 1.5},), ("folded",)),
    Unit("layer 1", {"b": "11"}),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    journal = start_journal(path, FINGERPRINT)
    for unit in UNITS:
        journal.append(unit)
    return path


def test_what_is_appended_comes_back(path: Path) -> None:
    assert list(continue_journal(path, FINGERPRINT).units.values()) == UNITS


def test_cut_anywhere_it_keeps_whole_lines_only(path: Path) -> None:
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        units = continue_journal(path, FINGERPRINT).units
        assert len(units) == max(sum(end <= length for end in ends) - 1, 0)
        journal = continue_journal(path, FINGERPRINT)
        journal.append(Unit("layer 9", {"z": "99"}))
        assert list(continue_journal(path, FINGERPRINT).units)[-1] == "layer 9"


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"model": "xyz", "options": FINGERPRINT["options"]}, "model was abc, is xyz"),
        (FINGERPRINT | {"model": "12e5"}, "model was abc, is 12e5"),
        ({"model": "abc"}, 'options was {"damping":0.01}, is absent'),
        (FINGERPRINT | {"torch": "2.14"}, "torch was absent, is 2.14"),
        (FINGERPRINT | {"options": '{"damping":0.02}'}, "options was damping 0.01, is 0.02."),
        (FINGERPRINT | {"calibration": "x"}, "calibration was absent, is x."),
        (
            FINGERPRINT | {"calibration": "x", "calibration rows": "77"},
            "continued: calibration was absent, is x.",
        ),
        (FINGERPRINT | {"calibration rows": "77"}, "calibration rows was absent, is 77."),
    ],
)
def test_other_work_is_refused_by_what_differs(path: Path, now: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as error:
        continue_journal(path, now)
    assert says in error.value.message
    assert "--force" in error.value.hint
    assert continue_journal(path, FINGERPRINT).units


def test_descriptions_that_happen_to_be_numbers(tmp_path: Path) -> None:
    start_journal(tmp_path / "j", {"model": "12e5"})
    with pytest.raises(UsageError, match="model was 12e5, is 34"):
        continue_journal(tmp_path / "j", {"model": "34"})


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text('{"journal": 99, "fingerprint": {}}\n')
    with pytest.raises(UsageError, match="no journal of this version"):
        continue_journal(path, {})
