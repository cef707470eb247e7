"""What a ``with`` closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """Holds something that must be given back."""

    @abstractmethod
    def close(self) -> None:
        """Gives it back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
