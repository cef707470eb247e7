"""Backends against transformers and against each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from continuing import continued
from safetensors.torch import load_file, save_file

from qwen3q.errors import MissingPackageError
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions, open_backend
from qwen3q.evaluate.input_rounding import int8_per_token
from qwen3q.evaluate.tokens import open_codec
from qwen3q.formats.folder import pack_linear, quantization_config
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.models.config import read_config
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.schemes import parse_scheme

CONTEXT, FIRST = 40, 20


def options(kind: str = "auto") -> BackendOptions:
    return BackendOptions(BackendKind(kind), threads=1, device="cpu")


@pytest.fixture(scope="module")
def chunks() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 8000, (3, CONTEXT)).astype(np.int32)


def logits_of(name: str, kind: str, chunks: np.ndarray) -> np.ndarray:
    with open_backend(find_artefact(name), options(kind), CONTEXT) as backend:
        pieces = []
        for start, values in backend.logits(chunks, FIRST):
            assert start == sum(map(len, pieces))
            pieces.append(values.copy())
        assert backend.vocab_size == pieces[0].shape[1]
        return np.concatenate(pieces)


@pytest.fixture(scope="module")
def transformers_logits(demo_folder, moe_folder, chunks):
    from transformers import AutoModelForCausalLM

    out = {}
    for name, folder in (("demo", demo_folder), ("moe", moe_folder)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            rows = model(torch.from_numpy(chunks).long()).logits[:, FIRST : CONTEXT - 1]
        out[name] = rows.flatten(0, 1).numpy()
    return out


def test_torch_equals_transformers(transformers_logits, demo_folder, moe_folder, chunks):
    for name, folder in (("demo", demo_folder), ("moe", moe_folder)):
        ours = logits_of(str(folder), "torch", chunks)
        np.testing.assert_allclose(ours, transformers_logits[name], atol=2e-4)


@pytest.mark.parametrize("kind", ["llama", "torch"])
def test_a_float_gguf_equals_transformers(transformers_logits, demo_ggufs, chunks, kind):
    ours = logits_of(str(demo_ggufs["F32"]), kind, chunks)
    # llama.cpp keeps keys and values in 16 bits
    atol = 2e-4 if kind == "torch" else 5e-2
    np.testing.assert_allclose(ours, transformers_logits["demo"], atol=atol)


def test_torch_reads_quantized_gguf_as_llama_does(demo_ggufs, chunks):
    ours = logits_of(str(demo_ggufs["Q4_K_M"]), "torch", chunks)
    theirs = logits_of(str(demo_ggufs["Q4_K_M"]), "llama", chunks)
    between = np.abs(ours - theirs).mean()
    cost = np.abs(ours - logits_of("demo", "torch", chunks)).mean()
    assert between < cost / 2


def test_greedy_answers_equal_transformers(demo_folder, demo_ggufs):
    from transformers import AutoModelForCausalLM

    prompt = open_codec(find_artefact("demo")).encode("Once upon a time", parse_special=True)
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    expected = model.generate(
        torch.from_numpy(prompt)[None].long(), max_new_tokens=12, do_sample=False
    )[0, len(prompt) :].tolist()
    stop = frozenset(model.generation_config.eos_token_id)
    expected = [token for token in expected if token not in stop]
    for name in ("demo", str(demo_ggufs["F32"])):
        with open_backend(find_artefact(name), options(), 64) as backend:
            assert continued(backend, prompt.tolist(), 12, stop) == expected
            first = frozenset(expected[:1])
            assert continued(backend, prompt.tolist(), 12, first) == []


def test_a_folder_and_its_gguf_have_one_tokenizer(demo_ggufs, demo_folder):
    folder, file = find_artefact("demo"), find_artefact(str(demo_ggufs["Q8_0"]))
    assert folder.tokenizer == file.tokenizer
    text = "Hello, 世界! 12 + 34 = 46\n<think>\nfine</think><|im_end|>"
    for parse_special in (False, True):
        ids = [open_codec(a).encode(text, parse_special=parse_special) for a in (folder, file)]
        np.testing.assert_array_equal(ids[0], ids[1])
    codecs = [open_codec(a) for a in (folder, file)]
    assert codecs[0].stop_tokens <= codecs[1].stop_tokens
    assert {c.decode(ids[1]) for c, ids in zip(codecs, [ids, ids], strict=True)} == {
        text.removesuffix("<|im_end|>")
    }


def test_int8_inputs_keep_the_largest_and_round_the_rest():
    x = torch.tensor([[1.0, -127.0, 0.4, 63.6], [0.0, 0.0, 0.0, 0.0]])
    assert int8_per_token(x).tolist() == [[1.0, -127.0, 0.0, 64.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.usefixtures("products_of_torch")
def test_w8a8_rounds_the_inputs_of_quantized_linears(demo_folder, tmp_path, chunks):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "w8a8"
    dequantized = write_w8a8(folder, demo_folder)
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    for name, module in model.named_modules():
        if f"{name}.weight" in dequantized:
            module.weight.data = dequantized[f"{name}.weight"]
            module.register_forward_pre_hook(lambda _, args: (naive_int8(args[0]),))
    with torch.inference_mode():
        rows = model(torch.from_numpy(chunks).long()).logits[:, FIRST : CONTEXT - 1]
    ours = logits_of(str(folder), "torch", chunks)
    between = np.abs(ours - rows.flatten(0, 1).numpy())
    cost = np.abs(ours - logits_of("demo", "torch", chunks))
    # a value on the border of two steps may round either way, and all after it differ a little
    assert (between.max(axis=1) < 1e-4).sum() >= 3
    assert between.mean() < cost.mean() / 3
    assert (cost.max(axis=1) > 1e-2).all()


def naive_int8(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for row, values in zip(out.view(-1, x.shape[-1]), x.view(-1, x.shape[-1]), strict=True):
        step = values.abs().max() / 127
        row.copy_(torch.round(values / step) * step)
    return out


def write_w8a8(folder: Path, demo: Path) -> dict[str, torch.Tensor]:
    """The demo in compressed-tensors W8A8; returns the weights its linears stand for."""
    shutil.copytree(demo, folder)
    scheme, config = parse_scheme("int8"), read_config(demo)
    raw = json.loads((demo / "config.json").read_text())
    raw["quantization_config"] = quantization_config(scheme, config)
    (folder / "config.json").write_text(json.dumps(raw))
    stored = load_file(demo / "model.safetensors")
    dequantized = {}
    for spec in model_tensors(config):
        if spec.is_linear:
            weight = stored.pop(spec.name).float()
            scales = (weight.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16).float()
            codes = ((weight / scales).round().clamp(-128, 127) + 128).to(torch.uint8)
            zeros = torch.full_like(scales, 128, dtype=torch.uint8)
            linear = QuantizedLinear(codes, scales, zeros, 8, weight.shape[1], True)
            dequantized[spec.name] = linear.dequantize()
            module = spec.name.removesuffix("weight")
            parts = pack_linear(scheme, linear)
            stored |= {f"{module}{suffix}": tensor for suffix, tensor in parts.items()}
    save_file(stored, folder / "model.safetensors")
    return dequantized


def test_llama_does_not_run_folders():
    with pytest.raises(MissingPackageError, match="the folder"):
        open_backend(find_artefact("demo"), options("llama"), 64)


def test_the_cached_model_reads_sequences_in_pieces_as_at_once():
    from qwen3q.evaluate.torch_backend import TorchBackend

    artefact = find_artefact("demo")
    tokens = torch.randint(0, 8000, (2, 40), generator=torch.Generator().manual_seed(3))
    with TorchBackend(artefact, BackendOptions(threads=1, device="cpu")) as backend:
        model = backend.cached_model()
        whole = model.step(tokens, [model.cache(), model.cache()])
        caches = [model.cache(room=4), model.cache(room=20)]
        for start, end in ((0, 17), (17, 38)):
            model.step(tokens[:, start:end], caches)
        # from here on one sequence is a token ahead of the other
        model.step(tokens[:1, 38:39], caches[:1])
        pieces = model.step(torch.stack((tokens[0, 39:], tokens[1, 38:39])), caches)
        torch.testing.assert_close(pieces[0], whole[0], atol=2e-4, rtol=1e-4)
        pieces = model.step(tokens[1:, 39:], caches[1:])
        torch.testing.assert_close(pieces[0], whole[1], atol=2e-4, rtol=1e-4)
        fork = model.cache()
        fork.take(caches[0], 20)
        pieces = model.step(tokens[:1, 20:], [fork])
        torch.testing.assert_close(pieces[0], whole[0], atol=2e-4, rtol=1e-4)
        assert [cache.length for cache in (*caches, fork)] == [40] * 3
        chunks = np.concatenate([tokens.numpy(), tokens.numpy()[:, :1]], 1).astype(np.int32)
        rows = next(iter(backend.logits(chunks, 39)))
        np.testing.assert_allclose(rows.values, whole, atol=2e-4, rtol=1e-4)
