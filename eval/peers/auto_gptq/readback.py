"""AutoGPTQ 0.7.1. It predates Qwen3, so the model class is registered with it here."""

from __future__ import annotations

from typing import ClassVar

from eval.peers.engine import mean_nll, odd_keys, read_prompt, tell


def main() -> None:
    """Register Qwen3, load a v1 file with the plain torch kernel in float32 and report."""
    prompt = read_prompt()
    import accelerate.utils.modeling
    import torch
    from auto_gptq import AutoGPTQForCausalLM
    from auto_gptq.modeling import _base, _const, auto
    from auto_gptq.modeling._base import BaseGPTQForCausalLM

    class Qwen3GPTQForCausalLM(BaseGPTQForCausalLM):
        layer_type = "Qwen3DecoderLayer"
        layers_block_name = "model.layers"
        outside_layer_modules: ClassVar[list[str]] = ["model.embed_tokens", "model.norm"]
        inside_layer_modules: ClassVar[list[list[str]]] = [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        ]

    auto.GPTQ_CAUSAL_LM_MODEL_MAP["qwen3"] = Qwen3GPTQForCausalLM
    for known in (_base.SUPPORTED_MODELS, _const.SUPPORTED_MODELS):
        if "qwen3" not in known:
            known.append("qwen3")
    # accelerate 1.15 ties the loaded embeddings to the empty lm_head instead of the reverse.
    accelerate.utils.modeling.retie_parameters = lambda model, _: model.tie_weights()
    model = AutoGPTQForCausalLM.from_quantized(
        str(prompt.folder),
        device="cpu",
        torch_dtype=torch.float32,
        use_safetensors=True,
        use_triton=False,
        disable_exllama=True,
        disable_exllamav2=True,
        inject_fused_attention=False,
        inject_fused_mlp=False,
    ).model
    # Its linears always have a bias, zero where the file has none.
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("_proj.bias") or t.any()}
    missing, unexpected = odd_keys(prompt.folder, state)
    tell("auto-gptq", mean_nll(model, prompt.tokens), missing, unexpected)


if __name__ == "__main__":
    main()
