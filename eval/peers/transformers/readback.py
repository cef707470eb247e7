"""transformers 5.23 with optimum, gptqmodel, compressed-tensors and bitsandbytes beside it."""

from __future__ import annotations

from eval.peers.engine import mean_nll, read_prompt, tell


def main() -> None:
    """Load as a user would, on the CPU, and report what transformers says about the keys."""
    prompt = read_prompt()
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        prompt.folder, dtype=torch.float32, device_map="cpu", output_loading_info=True
    )
    odd = set(info["mismatched_keys"]) | set(info["unexpected_keys"])
    tell("transformers", mean_nll(model, prompt.tokens), info["missing_keys"], map(str, odd))


if __name__ == "__main__":
    main()
