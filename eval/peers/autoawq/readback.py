"""AutoAWQ 0.2.9's gemm loader. It looks for CUDA or IPEX, so two names are patched for a CPU."""

from __future__ import annotations

from eval.peers.engine import mean_nll, odd_keys, read_prompt, tell


def main() -> None:
    """Load with the gemm module's plain torch path and report."""
    prompt = read_prompt()
    import awq.models.base
    import awq.modules.linear.gemm
    import torch
    from awq import AutoAWQForCausalLM

    awq.models.base.get_best_device = lambda: "cuda:0"  # "cpu" would ask for IPEX's own layout
    awq.modules.linear.gemm.TRITON_AVAILABLE = False
    model = AutoAWQForCausalLM.from_quantized(
        str(prompt.folder), fuse_layers=False, device_map={"": "cpu"}, torch_dtype=torch.float16
    ).model
    missing, unexpected = odd_keys(prompt.folder, model.state_dict())
    tell("autoawq", mean_nll(model, prompt.tokens), missing, unexpected)


if __name__ == "__main__":
    main()
