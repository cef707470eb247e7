"""What is told of layers: notes that several share once, and layers that other machines made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwen3q.quantize.journal import Unit


def notes_by_layers(units: Sequence[Unit]) -> list[str]:
    """Each note once, with its layers: ``layers 0 to 3, 5: scales folded ahead of q_proj``."""
    layers: dict[str, list[int]] = {}
    for unit in units:
        for note in unit.notes:
            if unit.layer is not None:
                layers.setdefault(note, []).append(unit.layer)
    return [f"{layers_in_words(of_note)}: {note}" for note, of_note in layers.items()]


def mixed_machines(units: Sequence[Unit]) -> list[str]:
    """A sentence where layers were made with different arithmetic, as when a run was cut and went
    on elsewhere; their last bits are then those of no single machine."""
    layers: dict[str, list[int]] = {}
    for unit in units:
        if unit.made_on and unit.layer is not None:
            layers.setdefault(unit.made_on, []).append(unit.layer)
    if len(layers) < 2:
        return []
    places = [f"{layers_in_words(made)} on {machine}" for machine, made in layers.items()]
    return [
        f"the run went on where products are rounded otherwise: {'; '.join(places)}. A run on one "
        "of them alone gives slightly other weights"
    ]


def layers_in_words(layers: Iterable[int]) -> str:
    """``layer 4``, ``layers 0 to 3, 5``."""
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    words = [str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in ranges]
    return f"layer{'s' if len(ranges) > 1 or len(ranges[0]) > 1 else ''} {', '.join(words)}"
