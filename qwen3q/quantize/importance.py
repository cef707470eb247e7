"""Mean squared inputs per linear, kept layer by layer, so that a killed run need not redo them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save

from qwen3q.checkpoint.writer import sync_folder
from qwen3q.errors import DiskError

if TYPE_CHECKING:
    from qwen3q.calibrate.statistics import InputMoments


class ImportanceStore:
    """A folder with one small file per decoder layer; a file that is there is whole.

    Attributes:
        folder: its name holds a fingerprint of model and calibration, so no run reads another's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def first_missing_layer(self, layers: int) -> int:
        """The first decoder layer that is not kept; ``layers`` if all are."""
        return next((i for i in range(layers) if not self._path(i).exists()), layers)

    def save(self, layer: int, moments: Mapping[str, InputMoments]) -> None:
        """Keeps one layer's mean squares; durable when this returns.

        Raises:
            DiskError: the folder can't be written.
        """
        data = save({name: m.mean_squares.cpu().numpy() for name, m in moments.items()})
        beside = self._path(layer).with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._path(layer))
            sync_folder(self.folder)
        except OSError as error:
            raise DiskError(f"Can't write {self.folder}: {error.strerror}.") from None

    def load(self, layers: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Mean squares float32 ``[in]`` of every linear, by checkpoint name."""
        return {
            name: values.astype(np.float32, copy=False)
            for layer in range(layers)
            for name, values in load_file(self._path(layer)).items()
        }

    def is_begun(self) -> bool:
        """Whether any layer is kept."""
        return any(self.folder.glob("layer-*.safetensors"))

    def what_is_kept(self) -> str:
        """What to tell of it when a run ends early."""
        if not self.is_begun():
            return ""
        return f"The layers that were run are kept in {self.folder}: go on with --resume."

    def discard(self) -> None:
        """Removes what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"
