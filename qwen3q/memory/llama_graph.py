"""The compute graph that llama.cpp builds for one batch of a Qwen3: sizes and uses, no numbers.

Follows ``src/models/qwen3.cpp``, ``qwen3moe.cpp`` and ``src/llama-graph.cpp``. Tensors are added
in llama.cpp's order (``ggml_build_forward_expand``), which is what decides how its allocator
packs them. Layer count is free: a few layers of each device have the same peak as all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.models.config import Qwen3Config

HADAMARD_V = 64
"""Side of the rotation that llama.cpp applies to V before it is quantized into the cache."""


class Tensor:
    """One tensor of the graph.

    Attributes:
        layout: element type and shape; equal layouts may share memory. None never does.
        view_of: the tensor whose memory this one shows.
        home: device of the buffer it already lives in (weights, KV cache), or None.
        device: device that computes it; decided by the scheduler.
        in_place: the operation may overwrite a source (``ggml_op_can_inplace``).
        is_view: a reshape, view, permutation or transposition: no work of its own.
        is_hold: keeps its source allocated until copies of it are made; not a use of it.
        follows_weights: runs where its weights are (all but RoPE and flash attention).
        batch: tokens it works on, for the decision to offload it.
        children, views, address: the allocator's bookkeeping.
    """

    __slots__ = (
        "address", "allocated", "batch", "children", "device", "follows_weights", "home",
        "in_place", "is_hold", "is_input", "is_output", "is_view", "is_weight", "layout", "nbytes",
        "sources", "view_of", "views",
    )  # fmt: skip

    def __init__(
        self,
        nbytes: int,
        sources: tuple[Tensor, ...] = (),
        *,
        layout: tuple[int | str, ...] | None = None,
        view_of: Tensor | None = None,
        home: int | None = None,
        in_place: bool = False,
        is_input: bool = False,
        is_weight: bool = False,
        is_view: bool = False,
        is_hold: bool = False,
        follows_weights: bool = True,
        batch: int = 0,
    ) -> None:
        self.nbytes = nbytes
        self.sources = list(sources)
        self.layout = layout
        self.view_of = view_of
        self.home = home
        self.in_place = in_place
        self.is_input = is_input
        self.is_output = False
        self.is_weight = is_weight
        self.is_view = is_view
        self.is_hold = is_hold
        self.follows_weights = follows_weights
        self.batch = batch
        self.device: int | None = None
        self.children = 0
        self.views = 0
        self.allocated = False
        self.address = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch is built for.

    Attributes:
        tokens: tokens of the batch (``n_ubatch``, or the context where that is smaller).
        outputs: rows of logits.
        n_kv: cache cells of one stream.
        streams: sequences with a cache of their own.
        rotate_k, rotate_v: that half of the cache is quantized, so it is rotated first.
        cast_k, cast_v: that half is read through a copy in F16, as flash attention does of F32.
        k_bytes, v_bytes: one layer's cache; matters only where it is copied to another device.
    """

    tokens: int
    outputs: int
    n_kv: int
    streams: int
    flash_attention: bool
    rotate_k: bool
    rotate_v: bool
    cast_k: bool
    cast_v: bool
    k_bytes: int = 0
    v_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Device of every part; the CPU is the last device.

    Attributes:
        layers, experts: one entry per simulated layer.
    """

    cpu: int
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of each weight of a layer: what an operation moved to the GPU copies there."""

    q: int = 0
    k: int = 0
    v: int = 0
    o: int = 0
    gate: int = 0
    up: int = 0
    down: int = 0
    output: int = 0


class Graph:
    """Nodes and leafs in llama.cpp's order."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []
        self._seen: set[Tensor] = set()

    def expand(self, tensor: Tensor) -> None:
        """Adds ``tensor`` after everything it depends on."""
        if tensor in self._seen:
            return
        self._seen.add(tensor)
        for source in tensor.sources:
            if source not in self._seen:
                self.expand(source)
        (self.nodes if tensor.sources else self.leafs).append(tensor)


def build_graph(
    config: Qwen3Config, batch: Batch, placement: Placement, weights: WeightBytes
) -> Graph:
    """The graph of one batch through ``len(placement.layers)`` layers."""
    return _Builder(config, batch, placement, weights).build()


class _Builder:
    def __init__(
        self, config: Qwen3Config, batch: Batch, placement: Placement, weights: WeightBytes
    ) -> None:
        self.config = config
        self.batch = batch
        self.placement = placement
        self.weights = weights
        self.graph = Graph()
        tokens = batch.tokens
        self.positions = _input(4 * tokens)
        self.k_cells = _input(8 * tokens)
        self.v_cells = _input(8 * tokens * (1 if batch.flash_attention else config.kv_size))
        self.mask = _input((2 if batch.flash_attention else 4) * batch.n_kv * tokens)
        self.k_rotation = _input(4 * _k_rotation_side(config.head_dim) ** 2)
        self.v_rotation = _input(4 * HADAMARD_V**2)
        self.output_rows = _input(4 * batch.outputs)

    def build(self) -> Graph:
        config, batch, graph = self.config, self.batch, self.graph
        hidden, tokens = config.hidden_size, batch.tokens
        table = Tensor(0, home=self.placement.cpu, is_weight=True)
        ids = _input(4 * tokens)
        stream = _result(("f32", hidden, tokens), (table, ids))
        graph.expand(stream)
        graph.expand(_input(4 * hidden * tokens))
        last = len(self.placement.layers) - 1
        for layer in range(last + 1):
            attended = self.attention(layer, self.norm(stream, layer, hidden, tokens))
            if layer == last:
                attended = _result(("f32", hidden, batch.outputs), (attended, self.output_rows))
                stream = _result(("f32", hidden, batch.outputs), (stream, self.output_rows))
                tokens = batch.outputs
            stream = _add(attended, stream)
            normed = self.norm(stream, layer, hidden, tokens)
            if config.is_moe:
                mixed = self.experts(layer, normed, tokens)
            else:
                mixed = self.feed_forward(layer, normed, tokens)
            stream = _add(mixed, stream)
        final = self.norm(stream, None, hidden, tokens)
        final.is_output = True
        head = Tensor(self.weights.output, home=self.placement.output, is_weight=True)
        logits = _result(("f32", config.vocab_size, tokens), (head, final), batch=tokens)
        logits.is_output = True
        graph.expand(logits)
        return graph

    def norm(self, x: Tensor, layer: int | None, *shape: int) -> Tensor:
        """RMS norm and its weight; ``layer`` None for the final one."""
        device = self.placement.output if layer is None else self.placement.layers[layer]
        normed = _result(("f32", *shape), (x,), in_place=True)
        weight = Tensor(4 * shape[0], home=device, is_weight=True)
        rows = normed.nbytes // (4 * shape[0])
        return _result(("f32", *shape), (normed, weight), in_place=True, batch=rows)

    def linear(self, device: int, nbytes: int, x: Tensor, *shape: int) -> Tensor:
        weight = Tensor(nbytes, home=device, is_weight=True)
        return _result(("f32", *shape), (weight, x), batch=shape[1])

    def attention(self, layer: int, x: Tensor) -> Tensor:
        config, batch, graph, weights = self.config, self.batch, self.graph, self.weights
        device, tokens = self.placement.layers[layer], batch.tokens
        heads, kv_heads, dim = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim
        )  # fmt: skip

        def project(nbytes: int, n_heads: int) -> Tensor:
            flat = self.linear(device, nbytes, x, n_heads * dim, tokens)
            return _view(flat, ("f32", dim, n_heads, tokens))

        q, k, v = (
            project(weights.q, heads),
            project(weights.k, kv_heads),
            project(weights.v, kv_heads),
        )
        q = self.rope(self.norm(q, layer, dim, heads, tokens), dim, heads)
        k = self.rope(self.norm(k, layer, dim, kv_heads, tokens), dim, kv_heads)
        if batch.rotate_k:
            q, k = self.rotate(q, self.k_rotation), self.rotate(k, self.k_rotation)
        if batch.rotate_v:
            v = self.rotate(v, self.v_rotation)
        for tensor in (q, v, k):
            graph.expand(tensor)

        k_cache = Tensor(batch.k_bytes, home=device)
        v_cache = Tensor(batch.v_bytes, home=device)
        graph.expand(_store(k_cache, _view(k), self.k_cells))
        if batch.flash_attention:
            graph.expand(_store(v_cache, _view(v), self.v_cells))
        else:
            cells = _view(v_cache)
            graph.expand(_store(cells, _view(_view(v)), self.v_cells))

        q = _view(_view(q))
        k_all, v_all = _view(_view(k_cache)), _view(_view(v_cache))
        if batch.cast_k:
            k_all = self.half(k_all)
        if batch.cast_v:
            v_all = self.half(v_all)
        if batch.flash_attention:
            mixed = Tensor(
                4 * config.q_size * tokens,
                (q, k_all, v_all, self.mask),
                follows_weights=False,
            )
            mixed = _view(mixed, ("f32", config.q_size, tokens))
        else:
            scores = ("f32", batch.n_kv, tokens // batch.streams, heads, batch.streams)
            kq = _result(scores, (k_all, q))
            kq = _result(scores, (kq, self.mask), in_place=True)
            mixed = _result(("f32", dim, tokens, heads), (v_all, kq))
            mixed = _result(("f32", config.q_size, tokens), (_view(mixed),))
        graph.expand(mixed)
        if batch.rotate_v:
            mixed = self.rotate(mixed, self.v_rotation)
        return self.linear(device, weights.o, mixed, config.hidden_size, tokens)

    def rope(self, x: Tensor, *shape: int) -> Tensor:
        return _result(
            ("f32", *shape, self.batch.tokens),
            (x, self.positions),
            in_place=True,
            follows_weights=False,
        )

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """``llama_mul_mat_hadamard``."""
        rotated = _result(("f32", "rotated", x.nbytes), (rotation, _view(x)), nbytes=x.nbytes)
        return _view(rotated, x.layout)

    def half(self, x: Tensor) -> Tensor:
        """An F16 copy of one layer's keys or values."""
        nbytes = 2 * self.config.kv_size * self.batch.n_kv * self.batch.streams
        return _result(("f16", nbytes), (x,), nbytes=nbytes)

    def feed_forward(self, layer: int, x: Tensor, tokens: int) -> Tensor:
        device, inner = self.placement.layers[layer], self.config.intermediate_size
        up = self.linear(device, self.weights.up, x, inner, tokens)
        gate = self.linear(device, self.weights.gate, x, inner, tokens)
        both = _result(("f32", inner, tokens), (gate, up))
        return self.linear(device, self.weights.down, both, self.config.hidden_size, tokens)

    def experts(self, layer: int, x: Tensor, tokens: int) -> Tensor:
        config, graph, weights = self.config, self.graph, self.weights
        top, inner, hidden = (
            config.num_experts_per_tok, config.moe_intermediate_size, config.hidden_size
        )  # fmt: skip
        device = self.placement.layers[layer]
        table = ("f32", config.num_experts, tokens)
        logits = self.linear(device, 4 * config.num_experts * hidden, x, config.num_experts, tokens)
        probabilities = _result(table, (logits,), in_place=True)
        order = _result(("i32", config.num_experts, tokens), (probabilities,))
        # a view with the stride of the whole order: a copy of it keeps the gaps
        chosen = _view(order, nbytes=order.nbytes - 4 * (config.num_experts - top))
        share = _result(("f32", 1, top, tokens), (_view(probabilities), chosen))
        flat = _view(share, ("f32", top, tokens))
        total = _result(("f32", 1, tokens), (flat,))
        total = _result(("f32", 1, tokens), (total,), in_place=True)
        share = _view(_result(("f32", top, tokens), (flat, total), in_place=True))
        graph.expand(share)

        def routed(nbytes: int, y: Tensor, width: int) -> Tensor:
            weight = Tensor(nbytes, home=self.placement.experts[layer], is_weight=True)
            return _result(("f32", width, top, tokens), (weight, y, chosen), batch=tokens)

        x = _view(x)
        up, gate = routed(weights.up, x, inner), routed(weights.gate, x, inner)
        both = _result(("f32", inner, top, tokens), (gate, up))
        each = routed(weights.down, both, hidden)
        each = _result(("f32", hidden, top, tokens), (each, share), in_place=True)
        graph.expand(each)
        parts = [_view(each) for _ in range(top)]
        for part in parts:
            graph.expand(part)
        mixed = parts[0]
        for part in parts[1:]:
            mixed = _result(("f32", hidden, tokens), (mixed, part), in_place=True)
            graph.expand(mixed)
        return _result(("f32", hidden, tokens), (mixed,)) if top == 1 else mixed


def _k_rotation_side(head_dim: int) -> int:
    """The largest power of two from 64 that divides ``head_dim`` (``build_input_k_rot``)."""
    side = HADAMARD_V
    while head_dim % (2 * side) == 0:
        side *= 2
    return side


def _input(nbytes: int) -> Tensor:
    return Tensor(nbytes, is_input=True)


def _result(
    layout: tuple[int | str, ...],
    sources: tuple[Tensor, ...],
    *,
    nbytes: int | None = None,
    in_place: bool = False,
    follows_weights: bool = True,
    batch: int = 0,
) -> Tensor:
    """A new tensor of 4-byte elements."""
    if nbytes is None:
        nbytes = 4
        for size in layout[1:]:
            assert isinstance(size, int)
            nbytes *= size
    return Tensor(
        nbytes,
        sources,
        layout=layout,
        in_place=in_place,
        follows_weights=follows_weights,
        batch=batch,
    )


def _view(
    source: Tensor, layout: tuple[int | str, ...] | None = None, *, nbytes: int | None = None
) -> Tensor:
    return Tensor(
        source.nbytes if nbytes is None else nbytes,
        (source,),
        layout=layout,
        view_of=source.view_of or source,
        is_view=True,
    )


def _store(cache: Tensor, rows: Tensor, cells: Tensor) -> Tensor:
    """``ggml_set_rows``: writes rows into the cache; its result is a view of the cache."""
    return Tensor(0, (rows, cells, cache), view_of=cache.view_of or cache)


def _add(a: Tensor, b: Tensor) -> Tensor:
    assert b.layout is not None
    return _result(b.layout, (a, b), in_place=True)
