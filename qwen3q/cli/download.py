"""``qwen3q download``: fetch a model from the Hub into the cache that other tools share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.cli.output import JsonFlag, format_bytes, note, print_json, progress_bar, stdout_console
from qwen3q.counts import counted

if TYPE_CHECKING:
    from qwen3q.models.hub import Download
    from qwen3q.models.hub_cache import HubFile


def register(app: typer.Typer) -> None:
    app.command("download")(download)


def download(
    name: Annotated[str, typer.Argument(help="Alias (qwen3-8b) or Hub id (org/name).")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; by default main.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and bytes; fetch nothing.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only check what is downloaded already.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Fetch a model from the Hub.

    A download that was cut off goes on where it ended. Every file's checksum is verified, those
    that were in the cache before included. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are
    honoured.
    """
    from qwen3q.models.hub import default_site, execute, plan_download
    from qwen3q.models.source import hub_repo

    planned = plan_download(hub_repo(name), revision, default_site(offline=offline))
    if not dry_run:
        with progress_bar(quiet=json_output) as progress:
            execute(planned, progress=progress, verify_cached=True)
    if json_output:
        print_json(_json(planned, dry_run))
    elif dry_run:
        _print_plan(planned)
    else:
        checked = sum(1 for file in planned.files if file.checksum)
        files = counted(len(planned.files), "file")
        note(
            f"{planned.repo}: {format_bytes(planned.total_bytes)} in {files}, "
            f"{checked} checksums verified."
        )
        stdout_console().print(str(planned.folder))


def _print_plan(planned: Download) -> None:
    console = stdout_console()
    console.print(f"{planned.repo} at {planned.revision}, commit {planned.commit}")
    width = max(len(file.name) for file in planned.files)
    for file in planned.files:
        size = format_bytes(file.nbytes)
        console.print(f"  {file.name:<{width}}  {size:>10}  {_state(file)}".rstrip())
    console.print(
        f"Total {format_bytes(planned.total_bytes)} in {counted(len(planned.files), 'file')}; "
        f"{format_bytes(planned.missing_bytes)} to download; "
        f"{format_bytes(planned.free_bytes)} free for {planned.site.cache}.",
    )
    if planned.missing_bytes > planned.free_bytes:
        note("It does not fit. Make room, or set HF_HOME to a folder on a larger disk.")


def _state(file: HubFile) -> str:
    if file.cached_bytes == file.nbytes:
        return "in the cache"
    return f"{format_bytes(file.cached_bytes)} in the cache" if file.cached_bytes else ""


def _json(planned: Download, dry_run: bool) -> dict[str, Any]:
    return {
        "repo": planned.repo,
        "revision": planned.revision,
        "commit": planned.commit,
        "folder": str(planned.folder),
        "dry_run": dry_run,
        "total_bytes": planned.total_bytes,
        "download_bytes": planned.missing_bytes,
        "free_bytes": planned.free_bytes,
        "files": [
            {
                "name": file.name,
                "bytes": file.nbytes,
                "cached_bytes": file.cached_bytes,
                "checksum": file.checksum,
            }
            for file in planned.files
        ],
    }
