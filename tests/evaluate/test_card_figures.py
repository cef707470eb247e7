"""An artefact's model card takes its figures from a report."""

from __future__ import annotations

import hashlib
import json

import pytest
from report_example import EVERYTHING, EXAMPLE

from qwen3q.errors import UsageError
from qwen3q.evaluate.card import update_card


def test_a_card_gets_its_figures_once(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\ntags: [qwen3]\n---\n\n# Name\n")
    update_card(card, EXAMPLE, "Q4_0")
    once = card.read_text()
    assert once.startswith("---\ntags: [qwen3]\n---\n\n# Name\n")
    assert "0.01200" in once
    assert "Q2_K" not in once
    assert "On books & more: 2,550 positions, chunks of 512 tokens." in once
    update_card(card, EXAMPLE, "Q4_0")
    assert card.read_text() == once
    with pytest.raises(UsageError, match="no model card"):
        update_card(tmp_path / "none.md", EXAMPLE, "Q4_0")


def test_a_card_keeps_the_line_ends_of_the_tool_that_wrote_it(tmp_path):
    card = tmp_path / "README.md"
    card.write_bytes(b"---\r\ntags: [x]\r\n---\r\n# Name\r\n")
    for _ in range(2):
        update_card(card, EXAMPLE, "Q4_0")
        written = card.read_bytes()
        assert written.startswith(b"---\r\ntags: [x]\r\n---\r\n# Name\r\n\r\n<!--")
        assert b"0.01200" in written
        assert written.count(b"\n") == written.count(b"\r\n")
    assert written.count(b"<!-- qwen3q eval -->") == 1


def test_a_card_has_what_was_answered_too(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Name\n")
    others = [{**row, "artefact": "other"} for row in EVERYTHING["gate"]]
    update_card(card, EVERYTHING | {"gate": EVERYTHING["gate"] + others}, "Q4_0")
    text = card.read_text()
    for said in ("Answers with thinking", "Answers without thinking", "7 of 18", "gsm8k"):
        assert said in text
    assert "other" not in text.partition("### ")[2].partition("### Tasks")[0]


def test_the_manifest_learns_the_cards_checksum(tmp_path):
    card, manifest = tmp_path / "README.md", tmp_path / "manifest.json"
    card.write_text("# Name\n")
    other = {"bytes": 3, "sha256": "abc"}
    outputs = {"README.md": {"bytes": 7, "sha256": "old"}, "config.json": other}
    manifest.write_text(json.dumps({"name": "x", "outputs": outputs}))
    update_card(card, EXAMPLE, "Q4_0")
    updated = json.loads(manifest.read_text())
    digest = hashlib.sha256(card.read_bytes()).hexdigest()
    assert updated["outputs"]["README.md"] == {"bytes": card.stat().st_size, "sha256": digest}
    assert updated["outputs"]["config.json"] == other
    assert updated["name"] == "x"
