"""The driver that sets quantizers side by side, with a quantizer that only reports."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from eval.peers import envs
from eval.peers.compare import Run, Setting, quantize
from eval.peers.job import REPORT_MARK
from eval.peers.readback import Reading, Report, merged, save


def test_runs_of_a_model_with_a_dot_keep_their_own_logs_and_tokens(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "Qwen3-0.6B"
    model.symlink_to(demo_folder)
    text = tmp_path / "text.txt"
    text.write_text("A lamp stood in the window. " * 200)
    setting = Setting(text, text, tmp_path / "out")
    setting.out.mkdir()
    names = set()

    def run(peer: str, module: str, arguments: list[str], *_: float) -> object:
        tokens = Path(arguments[arguments.index("--tokens") + 1])
        assert np.load(tokens).shape[1] == 512
        names.add(tokens.name)
        return subprocess.CompletedProcess([], 0, f"{peer}\n{REPORT_MARK}{json.dumps({})}\n")

    monkeypatch.setattr(envs, "run_module", run)
    for peer in ("autoawq", "gptqmodel"):
        asked = Run(peer, model, "awq:int4")
        quantize(asked, setting, setting.out / asked.name)
        assert (setting.out / f"{asked.name}.log").read_text().startswith(peer)
    assert len(names) == 2
    assert sorted(path.suffix for path in setting.out.iterdir()) == [".log", ".log"]


def reading(artefact: str, peer: str, judged: float = 4.0, problem: str = "") -> Reading:
    return Reading(artefact, "gptq", peer, "1", 4.0, judged, 0.0, (), (), problem)


def test_reading_in_one_engine_keeps_what_others_read(tmp_path: Path) -> None:
    whole = Report(
        (reading("a", "vllm_cpu"), reading("a", "transformers"), reading("b", "vllm_cpu")),
        ("a in autoawq: knows no such layout", "b in autoawq: knows no such layout"),
        4096,
    )
    save(whole, tmp_path)
    again = reading("a", "transformers", problem="NLL differs")
    grown = merged(Report((again,), (), 4096), tmp_path)
    assert set(grown.readings) == {whole.readings[0], again, whole.readings[2]}
    assert grown.left_out == whole.left_out

    other = reading("a", "transformers", judged=4.1)
    grown = merged(Report((other,), (), 4096), tmp_path)
    assert set(grown.readings) == {other, whole.readings[2]}

    unread = Report((), ("b in vllm_cpu: no kernel",), 4096)
    assert set(merged(unread, tmp_path).readings) == set(whole.readings[:2])
