"""Options that several verbs have, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OfflineFlag = Annotated[bool, typer.Option("--offline", help="Only what is downloaded.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Default: physical cores.", show_default=False)
]
CoresOption = Annotated[
    int | None, typer.Option(min=1, help="Default: every core.", show_default=False)
]
GpuLayersOption = Annotated[int, typer.Option(help="llama.cpp's layers on the GPU; -1: all.")]
TorchDeviceOption = Annotated[str | None, typer.Option(help="torch's device, such as cuda:1.")]
ContributeOption = Annotated[
    Path | None,
    typer.Option(help="Folder, or FILE.csv for speed alone: rows to improve the estimator."),
]
