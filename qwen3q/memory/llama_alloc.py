"""How llama.cpp spreads a graph over devices and packs it: the size of each compute buffer.

``schedule`` follows ``ggml_backend_sched_split_graph`` (ggml-backend.cpp), ``buffer_sizes``
follows ``ggml_gallocr_alloc_graph_impl`` (ggml-alloc.c) for backends that support every operation
of the graph and share no buffer type.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.memory.llama_graph import Graph, Tensor

PIPELINE_COPIES = 4
"""Copies of every input when devices work as a pipeline (``GGML_SCHED_MAX_COPIES``)."""

OFFLOAD_BATCH = 32
"""Tokens from which a GPU takes over an operation whose weights are on the CPU."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The graph with the copies between devices, in execution order.

    Attributes:
        nodes: each with the device whose buffer it is allocated in.
        leafs: allocated before everything else.
    """

    nodes: list[tuple[Tensor, int]]
    leafs: list[tuple[Tensor, int]]


def compute_bytes(
    graph: Graph, cpu: int, alignments: tuple[int, ...], *, pipeline: bool, offload: bool
) -> list[int]:
    """Bytes of the compute buffer on each device, the CPU last.

    Args:
        cpu: index of the CPU, the last device.
        alignments: of each device's buffers, in bytes.
        pipeline: several GPUs that compute asynchronously and hold the whole model.
        offload: GPUs take over large operations whose weights are on the CPU.
    """
    return buffer_sizes(schedule(graph, cpu, pipeline=pipeline, offload=offload), alignments)


def schedule(graph: Graph, cpu: int, *, pipeline: bool, offload: bool) -> Scheduled:
    """Decides each tensor's device and inserts the copies."""
    _assign(graph, cpu, offload)
    copies = PIPELINE_COPIES if pipeline else 1
    made: dict[tuple[int, int], list[Tensor]] = {}
    splits = _split(graph, made, copies)
    nodes: list[tuple[Tensor, int]] = []
    for device, inputs, members in splits:
        for source in inputs:
            assert source.device is not None
            hold = Tensor(0, (source,), view_of=source.view_of or source, is_hold=True)
            nodes.append((hold, source.device))
            nodes.append((made[id(source), device][0], device))
        nodes.extend((node, _device(node)) for node in members)
    leafs: list[tuple[Tensor, int]] = []
    if pipeline:
        for leaf in graph.leafs:
            if leaf.is_input:
                leaf.is_output = True
                leafs.append((leaf, _device(leaf)))
                leafs.extend((_kept(leaf), _device(leaf)) for _ in range(copies - 1))
        for device, inputs, _ in splits:
            for source in inputs:
                leafs.extend((copy, device) for copy in made[id(source), device])
    leafs.extend((leaf, _device(leaf)) for leaf in graph.leafs)
    return Scheduled(nodes, leafs)


def buffer_sizes(graph: Scheduled, alignments: tuple[int, ...]) -> list[int]:
    """Bytes of each device's buffer after packing the graph by lifetime."""
    arenas = [_Arena(alignment) for alignment in alignments]
    for leaf, device in graph.leafs:
        _allocate(leaf, device, arenas)
    for node, device in graph.nodes:
        if node.view_of is not None and not node.is_hold:
            node.view_of.views += 1
        if node.is_input:
            _allocate(node, device, arenas)
        for source in node.sources:
            source.children += 1
    for node, device in graph.nodes:
        _allocate(node, device, arenas)
        for source in node.sources:
            source.children -= 1
            if source.children == 0 and source.views == 0:
                _release(source, arenas)
    return [arena.size for arena in arenas]


def _assign(graph: Graph, cpu: int, offload: bool) -> None:
    """Passes 1 to 4: weights and caches first, then neighbours, GPUs before the CPU."""
    for leaf in graph.leafs:
        leaf.device = cpu if leaf.is_input else leaf.home
    work = [node for node in graph.nodes if not node.is_view]
    for node in graph.nodes:
        if node.device is None:
            node.device = _own_device(node, cpu, offload)
    for order, skip in ((work, cpu), (work[::-1], cpu), (work, None), (work[::-1], None)):
        current: int | None = None
        for node in order:
            if node.device is not None:
                current = None if node.device == skip else node.device
            elif current is not None:
                node.device = current
    for node in graph.nodes:
        if node.device is None and node.view_of is not None:
            node.device = node.view_of.device
        for source in node.sources:
            if source.device is None:
                source.device = source.view_of.device if source.view_of else node.device


def _own_device(node: Tensor, cpu: int, offload: bool) -> int | None:
    if node.view_of is not None and node.view_of.home is not None:
        return node.view_of.home
    if node.follows_weights:
        for source in node.sources:
            if source.is_weight:
                takes_over = offload and source.home == cpu and node.batch >= OFFLOAD_BATCH
                return 0 if takes_over else source.home
    return None


_Split = tuple[int, list[Tensor], list[Tensor]]


def _split(graph: Graph, made: dict[tuple[int, int], list[Tensor]], copies: int) -> list[_Split]:
    """Pass 5: runs of nodes on one device, each with the sources to copy there first."""
    first = next(_device(node) for node in graph.nodes if not node.is_view)
    current: _Split = (first, [], [])
    splits = [current]
    for node in graph.nodes:
        if node.is_view:
            current[2].append(node)
            continue
        device = _device(node)
        other_weights = any(s.is_weight and s.device != device for s in node.sources)
        if device != current[0] or (current[1] and other_weights):
            current = (device, [], [])
            splits.append(current)
        for index, source in enumerate(node.sources):
            if source.device == device:
                continue
            key = (id(source), device)
            if key not in made:
                made[key] = [_copy(source, keep=copies > 1) for _ in range(copies)]
                current[1].append(source)
            node.sources[index] = made[key][0]
        current[2].append(node)
    return splits


def _copy(source: Tensor, *, keep: bool) -> Tensor:
    return _kept(source) if keep else Tensor(source.nbytes, layout=source.layout)


def _kept(source: Tensor) -> Tensor:
    """A copy that stays allocated for the whole graph."""
    copy = Tensor(source.nbytes, layout=source.layout, is_input=True)
    copy.is_output = True
    return copy


def _device(tensor: Tensor) -> int:
    assert tensor.device is not None
    return tensor.device


class _Arena:
    """One device's buffer: best fit among the holes, else the open end (``ggml_dyn_tallocr``)."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.size = 0
        self.holes: list[list[int]] = []
        self.end = 0

    def aligned(self, nbytes: int) -> int:
        return -(-nbytes // self.alignment) * self.alignment

    def take(self, nbytes: int) -> int:
        nbytes = self.aligned(nbytes)
        best = None
        for hole in self.holes:
            if hole[1] >= nbytes and (best is None or hole[1] <= best[1]):
                best = hole
        if best is None:
            address = self.end
            self.end += nbytes
            self.size = max(self.size, self.end)
            return address
        address = best[0]
        best[0] += nbytes
        best[1] -= nbytes
        if best[1] == 0:
            self.holes.remove(best)
        return address

    def give_back(self, address: int, nbytes: int) -> None:
        nbytes = self.aligned(nbytes)
        position = 0
        while position < len(self.holes) and self.holes[position][0] < address:
            position += 1
        self.holes.insert(position, [address, nbytes])
        if position + 1 < len(self.holes) and address + nbytes == self.holes[position + 1][0]:
            self.holes[position][1] += self.holes.pop(position + 1)[1]
        if position and sum(self.holes[position - 1]) == address:
            self.holes[position - 1][1] += self.holes.pop(position)[1]
        if self.holes and sum(self.holes[-1]) == self.end:
            self.end = self.holes.pop()[0]


def _allocate(node: Tensor, device: int, arenas: list[_Arena]) -> None:
    if node.allocated or node.home is not None or node.view_of is not None:
        return
    node.allocated = True
    parent = _reusable_parent(node) if node.in_place else None
    if parent is None:
        node.device = device
        node.address = arenas[device].take(node.nbytes)
        return
    node.address, node.device = parent.address, parent.device
    parent.allocated = False


def _reusable_parent(node: Tensor) -> Tensor | None:
    """A source whose memory an in-place operation takes over: its last use, same layout."""
    for parent in node.sources:
        if (
            parent.allocated
            and not parent.is_output
            and parent.layout == node.layout
            and parent.children == 1
            and parent.views == 0
        ):
            return parent
    return None


def _release(source: Tensor, arenas: list[_Arena]) -> None:
    owner = source
    if source.view_of is not None:
        owner = source.view_of
        owner.views -= 1
        if owner.views or owner.children:
            return
    if owner.allocated and not owner.is_output:
        arenas[_device(owner)].give_back(owner.address, owner.nbytes)
        owner.allocated = False
