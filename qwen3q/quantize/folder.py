"""Quantizes a model into safetensors folders: many schemes, one calibration, resumable.

What this driver expects of the stream and the solvers:

``stream_layers(...)`` yields decoder layers in order, each with its float weights by short name
(``self_attn.q_proj``, as ``models/decoder.py`` names them) and its statistics. It is told the
first layer whose statistics are wanted; layers before it are only passed through. What it yields
for a layer depends on the model, the calibration and the recipe alone, never on where it started
or how many threads ran, so that a resumed run is byte-identical.

``solve_layer(weights, stats, scheme_at, ...) -> LayerResult`` with
- ``linears``: ``QuantizedLinear`` of every linear that ``scheme.at(full name)`` does not keep in
  float, by short name; ``scales`` already rounded to ``scheme.scale_dtype``, ``zeros`` at least
  ``scheme.min_zero``.
- ``folded``: every other tensor of the layer that smoothing changed (norms, float linears), by
  short name, already rounded to the dtype of the checkpoint's own tensor, so that codes can be
  solved for exactly the float tensors that are stored. Smoothing stays inside a layer.
- ``rows``: one report row per linear: name, algorithm (or the named fallback), bits, relative
  error under the calibration Hessian, tokens seen (per expert), seconds.
"""

from __future__ import annotations
