"""GPTQModel's own loader with its torch kernels, which also run mixtures of experts on a CPU."""

from __future__ import annotations

import json

from eval.peers.engine import mean_nll, odd_keys, read_prompt, tell


def main() -> None:
    """Load with the torch kernel of the folder's method and report."""
    prompt = read_prompt()
    from gptqmodel import BACKEND, GPTQModel

    config = json.loads((prompt.folder / "config.json").read_text())
    awq = config["quantization_config"]["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.TORCH
    model = GPTQModel.load(str(prompt.folder), device="cpu", backend=backend).model
    missing, unexpected = odd_keys(prompt.folder, model.state_dict())
    tell("gptqmodel", mean_nll(model, prompt.tokens), missing, unexpected)


if __name__ == "__main__":
    main()
