"""One artefact while it is made: its files, its journal, and what of it is done."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.checkpoint.shards import lay_out_shards
from qwen3q.checkpoint.torch_io import dtype_name, read_tensor, tensor_bytes
from qwen3q.checkpoint.writer import ShardWriter
from qwen3q.errors import DAMAGED_MODEL, CheckpointError, DiskError, UsageError
from qwen3q.files import partial_path
from qwen3q.formats.folder import pack_linear, unpack_linear
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.models.tensors import TensorSpec
from qwen3q.plan.plan import PlannedTensor
from qwen3q.quantize.artefact import FolderJob
from qwen3q.quantize.journal import Journal, Unit, continue_journal, start_journal, unit_name
from qwen3q.quantize.solve import SolvedLayer


class FolderWork:
    """The half-made folder of one job.

    Attributes:
        job: what it will be.
        fingerprint: what its bytes depend on.
        partial: where it lies until it is complete.
        resumed: whether an earlier run had begun it.
    """

    def __init__(
        self,
        job: FolderJob,
        fingerprint: Mapping[str, str],
        *,
        resume: bool = False,
        replace: bool = False,
    ) -> None:
        """Starts the folder, or continues one; what fails its checksum is done again.

        Raises:
            UsageError: an unfinished run is there and neither ``resume`` nor ``replace`` is
                set, or it belongs to other work.
            DiskError: the folder can't be written.
        """
        self.job = job
        self.fingerprint = fingerprint
        self.partial = partial_path(job.target)
        self.resumed = job.journal.exists() and resume
        if job.journal.exists() and not resume and not replace:
            raise UsageError(
                f"An unfinished run for {job.target} is there already.",
                "Continue it with --resume, or start again with --force.",
            )
        if self.resumed:
            self._journal = continue_journal(job.journal, fingerprint)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)
            job.target.parent.mkdir(parents=True, exist_ok=True)
            self._journal = self._started()
        self._planned: dict[str, list[PlannedTensor]] = {}
        self._suffixes: dict[str, list[str]] = {}
        for tensor in job.plan.tensors:
            source = tensor.sources[0]
            self._planned.setdefault(unit_name(source.layer), []).append(tensor)
            module = source.name.removesuffix(".weight")
            self._suffixes.setdefault(module, []).append(tensor.name.removeprefix(f"{module}."))
        try:
            self._writer = ShardWriter(self.partial, lay_out_shards(job.plan.tensors))
        except DiskError:
            if not self.resumed:
                self.discard()
            raise
        self._stored = Checkpoint(self.partial)
        self._drop_damaged()

    def __enter__(self) -> FolderWork:
        return self

    def __exit__(self, *_: object) -> None:
        self._stored.close()
        self._writer.close()

    @property
    def units(self) -> list[Unit]:
        """What is done, in the plan's order."""
        return [self._journal.units[name] for name in self._planned if self.is_done(name)]

    @property
    def missing(self) -> list[str]:
        """Units still to be done, in the plan's order."""
        return [name for name in self._planned if not self.is_done(name)]

    def is_done(self, unit: str) -> bool:
        return unit in self._journal.units

    def first_missing_layer(self, layers: int) -> int:
        """The first decoder layer that is not done; ``layers`` if all are."""
        undone = (i for i in range(layers) if not self.is_done(unit_name(i)))
        return next(undone, layers)

    def sources(self, unit: str) -> list[TensorSpec]:
        """The checkpoint tensors of a unit, in forward order."""
        specs = (tensor.sources[0] for tensor in self._planned[unit])
        return list(dict.fromkeys(specs))

    def finish_unit(
        self,
        unit: str,
        tensors: Iterable[tuple[str, torch.Tensor]],
        rows: Sequence[Mapping[str, Any]],
        notes: Sequence[str] = (),
        made_on: str = "",
    ) -> None:
        """Writes a unit's tensors and notes it in the journal; durable when this returns.

        Args:
            tensors: every tensor the plan has for this unit, by name in the artefact; each is
                written before the next is asked for.
            rows: one report row per quantized linear, complete once ``tensors`` are.
            notes, made_on: of a ``Unit``.

        Raises:
            CheckpointError: a tensor is missing, is not in the plan, or has another form; or a
                linear's error is not finite.
        """
        planned = {tensor.name: tensor for tensor in self._planned[unit]}
        hashes = {}
        for name, data in tensors:
            tensor = planned.get(name)
            if tensor is None:
                raise CheckpointError(f"{self.job.target.name}: tensor {name} is not in the plan.")
            if (dtype_name(data), tuple(data.shape)) != (tensor.type, tensor.shape):
                raise CheckpointError(
                    f"{self.job.target.name}: {name} came out as {dtype_name(data)} "
                    f"{list(data.shape)}, planned was {tensor.type} {list(tensor.shape)}."
                )
            hashes[name] = self._writer.write(name, tensor_bytes(data))
        for name in planned.keys() - hashes.keys():
            raise CheckpointError(f"{self.job.target.name}: tensor {name} was not made.")
        for row in rows:
            if not math.isfinite(row["error"]):
                raise CheckpointError(
                    f"{self.job.target.name}: the error of {row['name']} is no number: its weights "
                    "are too large, or the activations that reach it.",
                    DAMAGED_MODEL,
                )
        self._writer.sync()
        self._journal.append(Unit(unit, hashes, tuple(rows), tuple(notes), made_on))

    def packed(
        self, solved: SolvedLayer, layer: int, checkpoint: Checkpoint
    ) -> dict[str, torch.Tensor]:
        """A solved layer's tensors as they are stored, by name in the artefact.

        Float tensors that the solver left alone come from the checkpoint.

        Raises:
            CheckpointError: a linear was not solved, or what was can't be stored.
        """
        out: dict[str, torch.Tensor] = {}
        for spec in self.sources(unit_name(layer)):
            scheme = self.job.scheme.at(spec.name) if spec.is_linear else None
            if scheme is None:
                out[spec.name] = self._float(spec, solved, checkpoint)
                continue
            if spec.name not in solved.linears:
                raise CheckpointError(f"{self.job.target.name}: {spec.name} was not quantized.")
            try:
                parts = pack_linear(scheme, solved.linears[spec.name])
            except CheckpointError as error:
                raise CheckpointError(f"{spec.name}: {error.message}", error.hint) from None
            module = spec.name.removesuffix(".weight")
            out |= {f"{module}.{suffix}": tensor for suffix, tensor in parts.items()}
        return out

    def restore(self, layer: int, checkpoint: Checkpoint) -> SolvedLayer:
        """What ``packed`` was given for a layer that is done, its report left out."""
        linears: dict[str, QuantizedLinear] = {}
        changed: dict[str, torch.Tensor] = {}
        for spec in self.sources(unit_name(layer)):
            scheme = self.job.scheme.at(spec.name) if spec.is_linear else None
            if scheme is not None:
                module = spec.name.removesuffix(".weight")
                linears[spec.name] = unpack_linear(scheme, self._parts(module))
                continue
            stored = read_tensor(self._stored, spec.name)
            if not torch.equal(stored, read_tensor(checkpoint, spec.name)):
                changed[spec.name] = stored.float()
        return SolvedLayer(linears, changed, ())

    def _started(self) -> Journal:
        try:
            return start_journal(self.job.journal, self.fingerprint)
        except DiskError:
            self.discard()
            raise

    def discard(self) -> None:
        """Removes the half-made folder and its journal."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.job.journal.unlink(missing_ok=True)

    def _float(self, spec: TensorSpec, solved: SolvedLayer, checkpoint: Checkpoint) -> torch.Tensor:
        """A float tensor as it is stored: the solver's, where it changed it."""
        changed = solved.changed.get(spec.name)
        if changed is None:
            return read_tensor(checkpoint, spec.name)
        dtype = read_tensor(checkpoint, spec.name).dtype
        stored = changed.cpu().to(dtype)
        if not torch.isfinite(stored).all():
            raise CheckpointError(f"{self.job.target.name}: {spec.name} became NaN or Inf.")
        return stored

    def _parts(self, module: str) -> dict[str, torch.Tensor]:
        return {
            suffix: read_tensor(self._stored, f"{module}.{suffix}")
            for suffix in self._suffixes[module]
        }

    def _drop_damaged(self) -> None:
        """Forgets units whose bytes are not what the journal says."""
        for name, unit in list(self._journal.units.items()):
            planned = {tensor.name for tensor in self._planned.get(name, ())}
            if unit.tensors.keys() != planned or not all(
                self._sha256(tensor) == wanted for tensor, wanted in unit.tensors.items()
            ):
                del self._journal.units[name]

    def _sha256(self, name: str) -> str:
        digest = hashlib.sha256(self._stored.array(name).reshape(-1).view("u1").data)
        self._stored.release(name)
        return digest.hexdigest()
