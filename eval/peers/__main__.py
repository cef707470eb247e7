"""`python -m eval.peers`: other people's quantizers and engines, each in its own environment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.peers import envs


def main() -> int:
    """Parse the command line; each command is one function of this folder."""
    parser = argparse.ArgumentParser(prog="python -m eval.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("make", help="build environments (all of them without a name)")
    make.add_argument(
        "names", nargs="*", metavar="PEER", help=", ".join((*envs.NAMES, "llama_cpp"))
    )

    commands.add_parser("list", help="which environments exist, and where")

    comparison = commands.add_parser("compare", help="run quantizers side by side and judge them")
    comparison.add_argument("models", type=Path, nargs="+", metavar="FLOAT_DIR")
    comparison.add_argument("--calibration", type=Path, required=True, help="text file")
    comparison.add_argument("--text", type=Path, required=True, help="held-out text file")
    comparison.add_argument("--out", type=Path, required=True, help="checkpoints and results.json")
    comparison.add_argument("--quantizers", default="", help="such as qwen3q,autoawq (default all)")
    comparison.add_argument(
        "--formats", default="", help="such as gptq:int4,awq:int4 (default all)"
    )
    comparison.add_argument("--option", default="default", help="a quantizer's variant")
    comparison.add_argument(
        "--minutes", type=float, default=60.0, help="limit per run (default 60)"
    )
    comparison.add_argument("--again", default="", help="quantizers whose kept rows are not used")

    reporter = commands.add_parser("report", help="quality.md and quality.json of kept rows")
    reporter.add_argument("results", type=Path, metavar="RESULTS_JSON")
    reporter.add_argument("--out", type=Path, default=envs.REPO / "eval" / "reports")

    readback = commands.add_parser(
        "readback", help="load checkpoints in the peers' engines; the report grows by them"
    )
    readback.add_argument("folders", type=Path, nargs="+", metavar="QUANT_DIR")
    readback.add_argument("--text", type=Path, required=True, help="held-out text file")
    readback.add_argument("--peers", default="", help="only these engines")
    readback.add_argument("--rows", type=int, default=8, help="rows of 512 tokens (default 8)")
    readback.add_argument("--out", type=Path, default=envs.REPO / "eval" / "reports")

    args = parser.parse_args()
    if args.command == "make":
        for name in args.names or envs.NAMES:
            envs.make(name)
        return 0
    if args.command == "list":
        for name in envs.NAMES:
            print(f"{name:14} {'ready' if envs.python_of(name).exists() else 'not made'}")
        return 0
    if args.command == "report":
        from eval.peers.quality import publish

        print(publish(args.results, args.out))
        return 0
    import torch

    torch.set_num_threads(2)
    if args.command == "readback":
        from eval.peers.readback import markdown, merged, read_back, save

        for folder in args.folders:
            if not (folder / "config.json").is_file():
                print(f"{folder} is no model folder: it has no config.json.", file=sys.stderr)
                return 2
        only = tuple(_names(args.peers))
        report = merged(read_back(args.folders, args.text, args.rows, only=only), args.out)
        save(report, args.out)
        print(markdown(report))
        return int(report.failures > 0 or not report.readings)
    from eval.peers.compare import QUANTIZERS, Setting, compare, runs_of

    quantizers = _names(args.quantizers) or list(QUANTIZERS)
    unknown = [name for name in quantizers if name not in QUANTIZERS]
    if unknown:
        parser.error(f"no quantizer {unknown[0]!r}; known: {', '.join(QUANTIZERS)}")
    runs = list(runs_of(args.models, quantizers, _names(args.formats), args.option))
    again = tuple(_names(args.again))
    setting = Setting(
        args.calibration, args.text, args.out, limit_seconds=60 * args.minutes, again=again
    )
    return compare(runs, setting)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())
