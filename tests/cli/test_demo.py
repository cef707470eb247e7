"""The demo: every format measured on the same tokens, and the sum right."""

from __future__ import annotations

import json


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
