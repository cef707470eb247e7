"""Peak memory of ``qwen3q quantize`` against what it predicts, in decoder layers of float32.

    python -m eval.bench.quantize_memory MODEL --to gptq:int4 --samples 16 --length 512

MODEL is a checkpoint folder, such as ``python -m qwen3q.synthetic qwen3-8b MODEL --layers 1``
makes. The peak is the finished process's largest resident set, as the kernel counted it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.bench.timing import machine, run
from qwen3q.models.config import read_config
from qwen3q.quantize.footprint import layer_float_bytes
from qwen3q.threads import available_threads

BOUND = 2.5
"""Decoder layers in float32 that a process may take beside activations."""


@dataclass(frozen=True, slots=True)
class Peak:
    """One run.

    Attributes:
        peak: largest resident size, bytes.
        predicted: what the run printed before it started.
        activations: hidden states of all rows and of those at work, bytes, as predicted.
        layer: one decoder layer in float32, bytes.
    """

    scheme: str
    rows: int
    length: int
    seconds: float
    peak: int
    predicted: int
    activations: int
    layer: int

    @property
    def layers(self) -> float:
        """The peak without activations, in layers."""
        return (self.peak - self.activations) / self.layer


def measure(model: Path, scheme: str, rows: int, length: int, threads: int) -> Peak:
    """Runs the command once; its artefact is thrown away."""
    with tempfile.TemporaryDirectory(dir=model.parent) as out:
        command = [sys.executable, "-m", "qwen3q", "quantize", str(model), "--to", scheme]
        command += ["--calibration-samples", str(rows), "--calibration-length", str(length)]
        done = run([*command, "--out", out, "--device", "cpu"], {"OMP_NUM_THREADS": str(threads)})
        [report] = Path(out).glob("*/report.json")
        spent = json.loads(report.read_text())["run"]
    return Peak(
        scheme=scheme,
        rows=rows,
        length=length,
        seconds=done.seconds,
        peak=done.peak_bytes,
        predicted=spent["predicted_peak_memory_bytes"],
        activations=spent["predicted_activation_bytes"],
        layer=layer_float_bytes(read_config(model)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--to", action="append", dest="schemes")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.threads} threads")
    peaks = []
    for scheme in arguments.schemes or ["gptq:int4"]:
        peak = measure(
            arguments.model, scheme, arguments.samples, arguments.length, arguments.threads
        )
        peaks.append(peak)
        print(
            f"{scheme}, {peak.rows} x {peak.length} tokens: peak {peak.peak / 1e6:,.0f} MB, "
            f"predicted {peak.predicted / 1e6:,.0f} MB; activations "
            f"{peak.activations / 1e6:,.0f} MB; the rest is {peak.layers:.2f} layers of "
            f"{peak.layer / 1e6:,.0f} MB (bound {BOUND}); {peak.seconds:.0f} s"
        )
    if arguments.json:
        rows = [asdict(peak) | {"layers": peak.layers} for peak in peaks]
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
