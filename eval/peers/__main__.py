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

    baseline = commands.add_parser("baseline", help="run peers' quantizers and judge the results")
    baseline.add_argument("models", type=Path, nargs="+", metavar="FLOAT_DIR")
    baseline.add_argument("--calibration", type=Path, required=True, help="text file")
    baseline.add_argument("--text", type=Path, required=True, help="held-out text file")
    baseline.add_argument("--out", type=Path, required=True, help="checkpoints and results.json")
    baseline.add_argument("--peers", default="gptqmodel,llmcompressor,autoawq,auto_round")
    baseline.add_argument("--formats", default="", help="such as gptq:int4,awq:int4 (default all)")
    baseline.add_argument("--option", default="default", help="a peer's variant")

    readback = commands.add_parser("readback", help="load checkpoints in the peers' engines")
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
    import torch

    torch.set_num_threads(2)
    if args.command == "readback":
        from eval.peers.readback import markdown, read_back, save

        only = tuple(p for p in args.peers.split(",") if p)
        report = read_back(args.folders, args.text, args.rows, only=only)
        save(report, args.out)
        print(markdown(report))
        return int(report.failures > 0 or not report.readings)
    from eval.peers.baselines import run_all

    formats = [f for f in args.formats.split(",") if f]
    peers = args.peers.split(",")
    return run_all(peers, args.models, formats, args.calibration, args.text, args.out, args.option)


if __name__ == "__main__":
    sys.exit(main())
