"""A Qwen3's ``config.json``, in the 4.x and 5.x spellings of transformers, dense and MoE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3q.errors import ModelError
from qwen3q.models.json_files import read_object, read_optional
from qwen3q.models.nearby import did_you_mean
from qwen3q.models.quantization_config import quant_method

MODEL_TYPES = ("qwen3", "qwen3_moe")
_SHOWN = 80
_MOST = (1 << 31) - 1
"""Of any number in a config: what llama.cpp counts with."""
_LIMITS = {"num_hidden_layers": 512, "num_experts": 1024, "vocab_size": 1 << 24}
"""Several times what any release has: plans list tensors and tokens, and must not be endless."""
_FLOAT_TYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
_WANTED = "Give a folder that holds config.json, tokenizer.json and *.safetensors."
_REFETCH = "Fetch the model's config.json again; qwen3q reads the text models of Qwen3 alone."


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN context extension (Peng et al., 2023, arXiv 2309.00071)."""

    factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class Qwen3Config:
    """The shape of one Qwen3, dense when ``num_experts`` is 0.

    ``head_dim * num_attention_heads`` need not equal ``hidden_size``; in most Qwen3 it does not.
    ``quant_method`` says how its weights are packed (``gptq``, ``fp8``); None where they are float.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    yarn: Yarn | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    quant_method: str | None = None

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def q_size(self) -> int:
        """Output features of q_proj, input features of o_proj."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output features of k_proj and of v_proj."""
        return self.num_key_value_heads * self.head_dim

    def is_moe_layer(self, layer: int) -> bool:
        """Whether decoder layer ``layer`` routes to experts, as transformers decides it."""
        return (
            self.is_moe
            and layer not in self.mlp_only_layers
            and (layer + 1) % self.decoder_sparse_step == 0
        )


def read_config(folder: Path) -> Qwen3Config:
    """Reads ``folder/config.json``.

    Raises:
        ModelError: no such file, not JSON, or not a Qwen3 that this toolkit knows.
    """
    return parse_config(read_config_json(folder), where=str(folder / "config.json"))


def read_config_json(folder: Path) -> dict[str, Any]:
    """The raw ``config.json`` of a model folder."""
    path = folder / "config.json"
    if not folder.exists():
        raise ModelError(f"There is no folder {folder}.", did_you_mean(folder) or _WANTED)
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is no model folder.", _WANTED)
    return read_object(path)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """``generation_config.json`` of a folder; empty if it has none.

    Raises:
        ModelError: the file is there but broken.
    """
    return read_optional(folder / "generation_config.json")


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> Qwen3Config:
    """Builds a config from the JSON object of ``config.json``.

    Raises:
        ModelError: names the first key that is missing, has the wrong type, or does not fit.
    """
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ModelError(
            f"{where} has model_type {model_type!r}, which is not Qwen3.",
            f"qwen3q reads model_type {' and '.join(MODEL_TYPES)} (text models).",
        )
    fields = _Fields(raw, where)
    moe = model_type == "qwen3_moe"
    hidden_size = fields.positive("hidden_size")
    heads = fields.positive("num_attention_heads")
    rope = _rope_parameters(raw)
    config = Qwen3Config(
        model_type=model_type,
        hidden_size=hidden_size,
        num_hidden_layers=fields.positive("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=fields.positive("num_key_value_heads", default=heads),
        head_dim=fields.positive("head_dim", default=128),
        intermediate_size=fields.positive("intermediate_size"),
        vocab_size=fields.positive("vocab_size"),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_position_embeddings=fields.positive("max_position_embeddings", default=32768),
        rope_theta=fields.number("rope_theta", rope.get("rope_theta", raw.get("rope_theta", 1e6))),
        rms_norm_eps=fields.number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
        num_experts=fields.positive("num_experts", "num_local_experts") if moe else 0,
        num_experts_per_tok=fields.positive("num_experts_per_tok") if moe else 0,
        moe_intermediate_size=fields.positive("moe_intermediate_size") if moe else 0,
        norm_topk_prob=bool(raw.get("norm_topk_prob", False)) if moe else True,
        decoder_sparse_step=fields.positive("decoder_sparse_step", default=1),
        mlp_only_layers=fields.indices("mlp_only_layers"),
        yarn=_yarn(rope, fields),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        dtype=fields.float_type(),
        quant_method=quant_method(raw, where),
    )
    _check(config, raw, where)
    return config


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """An ``eos_token_id``, which is one id, a list of ids or absent, as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


@dataclass(frozen=True, slots=True)
class _Fields:
    raw: Mapping[str, Any]
    where: str

    def positive(self, *names: str, default: int | None = None) -> int:
        """The first of ``names`` that is present, a positive int."""
        for name in names:
            value = self.raw.get(name)
            if value is not None:
                return self.whole(name, value)
        if default is None:
            raise ModelError(f"{self.where} has no {names[0]}.", _REFETCH)
        return default

    def whole(self, name: str, value: Any) -> int:
        if type(value) is not int or not 0 < value <= _MOST:
            raise ModelError(
                f"{self.where}: {name} is {_shown(value)}, not a positive whole number.", _REFETCH
            )
        return value

    def indices(self, name: str) -> tuple[int, ...]:
        """A list of layers, empty if absent."""
        value = self.raw.get(name) or []
        if not isinstance(value, list):
            raise ModelError(f"{self.where}: {name} is {value!r}, not a list of layers.", _REFETCH)
        for index in value:
            if not isinstance(index, int) or index < 0:
                raise ModelError(
                    f"{self.where}: {name} holds {index!r}, not a layer index.", _REFETCH
                )
        return tuple(value)

    def number(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < value <= _MOST:
            raise ModelError(
                f"{self.where}: {name} is {_shown(value)}, not a positive number.", _REFETCH
            )
        return float(value)

    def float_type(self) -> str:
        """What the weights are stored in, by torch's name."""
        value = self.raw.get("dtype") or self.raw.get("torch_dtype") or "bfloat16"
        if value not in _FLOAT_TYPES:
            raise ModelError(
                f"{self.where}: dtype is {_shown(value)}, not one of {', '.join(_FLOAT_TYPES)}.",
                _REFETCH,
            )
        return str(value)


def _shown(value: Any) -> str:
    """A value for a message; a file may hold one of any length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _rope_parameters(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """5.x nests everything in ``rope_parameters``; 4.x has ``rope_scaling`` and a flat theta."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return rope if isinstance(rope, Mapping) else {}


def _yarn(rope: Mapping[str, Any], fields: _Fields) -> Yarn | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ModelError(
            f"{fields.where}: RoPE type {kind!r} is not one Qwen3 uses.", "Known: default, yarn."
        )
    original = rope.get("original_max_position_embeddings")
    return Yarn(
        factor=fields.number("rope factor", rope.get("factor")),
        original_max_position_embeddings=fields.positive("max_position_embeddings", default=32768)
        if original is None
        else fields.whole("original_max_position_embeddings", original),
    )


def _check(config: Qwen3Config, raw: Mapping[str, Any], where: str) -> None:
    for name, most in _LIMITS.items():
        if getattr(config, name) > most:
            raise ModelError(
                f"{where}: {name} is {getattr(config, name)}, more than {most}.", _REFETCH
            )
    if config.num_attention_heads % config.num_key_value_heads:
        raise ModelError(
            f"{where}: num_attention_heads {config.num_attention_heads} is no multiple of "
            f"num_key_value_heads {config.num_key_value_heads}.",
            _REFETCH,
        )
    if config.head_dim % 2:
        raise ModelError(
            f"{where}: head_dim {config.head_dim} is odd, so RoPE can't pair it.", _REFETCH
        )
    if config.num_experts_per_tok > config.num_experts:
        raise ModelError(
            f"{where}: num_experts_per_tok {config.num_experts_per_tok} is more than "
            f"num_experts {config.num_experts}.",
            _REFETCH,
        )
    if raw.get("attention_bias"):
        raise ModelError(
            f"{where}: attention_bias is true; no Qwen3 release has attention biases.", _REFETCH
        )
    if raw.get("use_sliding_window"):
        raise ModelError(
            f"{where}: use_sliding_window is true; no Qwen3 release uses it.", _REFETCH
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(
            f"{where}: hidden_act is {raw['hidden_act']!r}; Qwen3 uses silu.", _REFETCH
        )
    for token in (config.bos_token_id, *config.eos_token_ids):
        if token is not None and not isinstance(token, int):
            raise ModelError(
                f"{where}: {token!r} is no token id (bos_token_id or eos_token_id).", _REFETCH
            )
