"""The demo: every format measured on the same tokens, and the sum right."""

from __future__ import annotations

import json
from types import SimpleNamespace

from qwen3q.cli.demo import _show
from qwen3q.cli.doctor import doctor


def test_demo_adds_in_every_format(cli, tmp_path):
    run = cli("demo", "--json", "--threads", 1, "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["demo"]
    assert [row["format"] for row in rows] == [
        "gguf:BF16", "gguf:Q8_0", "gguf:Q4_K_M", "gguf:Q3_K_S",
    ]  # fmt: skip
    assert all(row["right"] for row in rows)
    assert len({row["tokens"] for row in rows}) == 1
    sizes = [row["file_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == [next(tmp_path.glob(f"*{r['format'][5:]}.gguf")).stat().st_size for r in rows]
    float_row, q8 = rows[0], rows[1]
    assert abs(q8["perplexity"] / float_row["perplexity"] - 1) < 0.01


def test_brackets_are_text_and_marks_are_not(capsys):
    plan = {"parameters": 1, "format": "gguf:Q8_0", "file_bytes": 1, "bits_per_weight": 8.5}
    perplexity = {"tokens": 1, "context": 2, "perplexity": 3.0, "stderr": 0.1}
    rows = [
        SimpleNamespace(
            plan=SimpleNamespace(**plan, model="M [/x]"),
            perplexity=SimpleNamespace(**perplexity),
            answer="[/y] 802",
            right=right,
        )
        for right in (True, False)
    ]
    _show(rows)
    doctor(json_output=False, strict=False)
    out = capsys.readouterr().out
    assert all(text in out for text in ("M [/x]", "✓ [/y] 802", "✗ [/y] 802", "ok  python"))
    assert "[green" not in out
