"""Downloads against a local Hub: whole, broken off, damaged, refused, offline, dry."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import huggingface_hub
import pytest
from hub_server import HubServer, Repo, folder_files, sha256
from huggingface_hub import constants

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import DiskError, ModelError, SourceError, UsageError
from qwen3q.models import hub, hub_transfer
from qwen3q.models.config import read_config
from qwen3q.models.hub import HubSite, execute, fetch_config, plan_download
from qwen3q.synthetic.checkpoint import reshape_config, write_checkpoint

REPO = "someone/Qwen3-tiny"
SHARD = "model-00001-of-00002.safetensors"
CHUNK = 1 << 16


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, demo_folder):
    """The demo's shape cut to two layers, in two shards of about 1 MB."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    config = reshape_config(read_config(demo_folder), num_hidden_layers=2, hidden_size=64)
    write_checkpoint(config, folder, shards=2)
    return folder


@pytest.fixture
def server(tiny_folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with HubServer() as local:
        unwanted = {
            "README.md": b"read me",
            "pytorch_model.bin": b"pickle" * 100,
            "model-Q4_K_M.gguf": b"gguf" * 100,
            "original/consolidated.safetensors": b"x" * 100,
        }
        local.repos[REPO] = Repo(folder_files(tiny_folder) | unwanted)
        yield local


@pytest.fixture
def site(server, tmp_path):
    return HubSite(server.endpoint, tmp_path / "cache")


def fetch(site, **options):
    return execute(plan_download(REPO, options.pop("revision", None), site), **options)


def offline(site):
    return HubSite(site.endpoint, site.cache, offline=True)


def partial_files(site):
    return list(site.cache.rglob("*.incomplete"))


def blob_of(path):
    return path.resolve()


def test_everything_needed_arrives_and_nothing_else(server, site, tiny_folder):
    folder = fetch(site)
    assert folder_files(folder) == folder_files(tiny_folder)
    with Checkpoint(folder) as opened:
        assert len(opened.tensors) == 24
    assert not partial_files(site)


def test_huggingface_hub_finds_the_files_in_its_cache(server, site):
    folder = fetch(site)
    for name in ("config.json", SHARD):
        found = huggingface_hub.try_to_load_from_cache(REPO, name, cache_dir=site.cache)
        assert found == str(folder / name)
    scan = huggingface_hub.scan_cache_dir(site.cache)
    assert not scan.warnings
    (repo,) = scan.repos
    assert repo.repo_id == REPO
    (revision,) = repo.revisions
    assert revision.refs == {"main"}
    assert revision.nb_files == 7


def test_what_huggingface_hub_fetched_is_not_fetched_again(server, site):
    for name in ("config.json", SHARD):
        huggingface_hub.hf_hub_download(REPO, name, cache_dir=site.cache, endpoint=server.endpoint)
    before = server.served_bytes(SHARD)
    planned = plan_download(REPO, None, site)
    whole = {file.name for file in planned.files if file.cached_bytes == file.nbytes}
    assert whole == {"config.json", SHARD}
    execute(planned)
    assert server.served_bytes(SHARD) == before


def test_progress_ends_at_the_total(server, site):
    seen = []
    planned = plan_download(REPO, None, site)
    execute(planned, progress=lambda *report: seen.append(report))
    total = sum(file.nbytes for file in planned.files)
    assert {report[1] for report in seen} == {total}
    done = [report[0] for report in seen]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(done) > total / CHUNK / 2


def test_nothing_is_printed(server, site, capfd):
    server.drops[SHARD] = [3 * CHUNK]
    fetch(site)
    assert capfd.readouterr() == ("", "")


def test_second_run_fetches_nothing(server, site):
    fetch(site)
    server.log.clear()
    fetch(site)
    assert [request.path for request in server.log] == [f"/api/models/{REPO}/revision/main"]


def test_pinned_commit_that_is_whole_asks_nobody(server, site):
    commit = server.repos[REPO].commit
    folder = fetch(site, revision=commit)
    server.log.clear()
    assert fetch(site, revision=commit) == folder
    assert not server.log


def test_new_commit_fetches_only_what_changed(server, site):
    fetch(site)
    old = server.served_bytes(SHARD)
    repo = server.repos[REPO]
    repo.files["generation_config.json"] += b"\n"
    folder = fetch(site)
    assert folder.name == repo.commit
    assert server.served_bytes(SHARD) == old
    assert (folder / SHARD).read_bytes() == repo.files[SHARD]


def test_broken_connection_is_taken_up_where_it_broke(server, site, tiny_folder):
    size = (tiny_folder / SHARD).stat().st_size
    server.drops[SHARD] = [3 * CHUNK, 2 * CHUNK]
    folder = fetch(site)
    assert (folder / SHARD).read_bytes() == (tiny_folder / SHARD).read_bytes()
    ranges = [request.range for request in server.file_requests(SHARD)]
    assert ranges == [None, f"bytes={3 * CHUNK}-", f"bytes={5 * CHUNK}-"]
    assert server.served_bytes(SHARD) == size


def test_next_run_goes_on_where_a_failed_one_ended(server, site, tiny_folder):
    size = (tiny_folder / SHARD).stat().st_size
    server.drops[SHARD] = [4 * CHUNK] + [0] * 20
    with pytest.raises(SourceError, match="no connection"):
        fetch(site)
    server.drops.clear()
    planned = plan_download(REPO, None, site)
    (shard,) = [file for file in planned.files if file.name == SHARD]
    assert shard.cached_bytes == 4 * CHUNK
    folder = execute(planned)
    assert (folder / SHARD).read_bytes() == (tiny_folder / SHARD).read_bytes()
    assert server.file_requests(SHARD)[-1].range == f"bytes={4 * CHUNK}-"
    assert server.served_bytes(SHARD) == size


def test_killed_run_leaves_a_beginning_that_is_kept(server, site, tiny_folder):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from huggingface_hub import constants\n"
        f"constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}\n"
        "from qwen3q.models.hub import HubSite, execute, plan_download\n"
        "def progress(done, total, label):\n"
        "    if done > total / 2: os.kill(os.getpid(), 9)\n"
        f"site = HubSite({site.endpoint!r}, Path({str(site.cache)!r}))\n"
        f"execute(plan_download({REPO!r}, None, site), progress=progress)\n"
    )
    died = subprocess.run([sys.executable, "-c", program], check=False)
    assert died.returncode == -signal.SIGKILL
    kept = sum(path.stat().st_size for path in site.cache.rglob("blobs/*"))
    total = sum(path.stat().st_size for path in tiny_folder.iterdir())
    assert kept > total / 2
    server.log.clear()
    folder = fetch(site)
    assert folder_files(folder) == folder_files(tiny_folder)
    again = sum(one.served for one in server.log if not one.path.startswith("/api/"))
    assert again == total - kept


def test_server_that_ignores_ranges_still_gives_a_right_file(server, site, tiny_folder):
    server.ignore_range = True
    server.drops[SHARD] = [3 * CHUNK]
    try:
        folder = fetch(site)
    except SourceError:  # huggingface_hub below 2 joins the pieces; the next run starts afresh.
        folder = fetch(site)
    assert (folder / SHARD).read_bytes() == (tiny_folder / SHARD).read_bytes()


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json", "config.json"])
def test_damaged_file_is_refused_by_name_and_fetched_anew(server, site, tiny_folder, name):
    server.damaged.add(name)
    with pytest.raises(SourceError, match=f"{name} of {REPO} is damaged"):
        fetch(site)
    right = (tiny_folder / name).read_bytes()
    assert not any(path.read_bytes() == right for path in site.cache.rglob(name))
    assert sha256(right) not in {path.name for path in site.cache.rglob("*")}
    server.damaged.clear()
    assert (fetch(site) / name).read_bytes() == right


def test_damage_in_the_cache_is_found_and_repaired(server, site, tiny_folder):
    folder = fetch(site)
    blob = blob_of(folder / SHARD)
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 0xFF
    blob.write_bytes(damaged)
    for how in (site, offline(site)):
        assert plan_download(REPO, None, how).missing_bytes == 0
    with pytest.raises(SourceError, match=f"{SHARD} .* is damaged"):
        fetch(offline(site), verify_cached=True)
    assert not blob.exists()
    fetch(site, verify_cached=True)
    assert (folder / SHARD).read_bytes() == (tiny_folder / SHARD).read_bytes()


def test_shortened_file_in_the_cache_is_fetched_again(server, site, tiny_folder):
    folder = fetch(site)
    os.truncate(blob_of(folder / SHARD), 100)
    fetch(site)
    assert (folder / SHARD).read_bytes() == (tiny_folder / SHARD).read_bytes()


def test_cache_without_links(server, site, tiny_folder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    folder = fetch(site)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert folder_files(folder) == folder_files(tiny_folder)
    server.log.clear()
    fetch(site)
    assert len(server.log) == 1
    assert fetch(offline(site), verify_cached=True) == folder


def test_plan_fetches_no_file(server, site):
    planned = plan_download(REPO, None, site)
    assert [request.path for request in server.log] == [f"/api/models/{REPO}/revision/main"]
    assert planned.missing_bytes == planned.total_bytes
    assert not site.cache.exists()


def test_config_alone_can_be_fetched(server, site, tiny_folder):
    download = fetch_config(REPO, None, site)
    assert read_config(download.folder) == read_config(tiny_folder)
    assert server.served_bytes(SHARD) == 0
    assert {path.name for path in download.folder.iterdir()} == {"config.json"}


def test_model_that_is_no_qwen3_costs_no_weights(server, site):
    server.repos[REPO].files["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(ModelError, match="llama"):
        fetch(site)
    assert server.served_bytes(SHARD) == 0


@pytest.mark.parametrize(
    ("files", "word"), [({"model.bin": b"x"}, "pickles"), ({"a.gguf": b"x"}, "GGUF"), ({}, "Give")]
)
def test_repository_without_safetensors(server, site, files, word):
    server.repos[REPO] = Repo({"config.json": b"{}"} | files)
    with pytest.raises(SourceError, match=r"holds no \*\.safetensors") as caught:
        plan_download(REPO, None, site)
    assert word in caught.value.hint


def test_offline_uses_the_cache_and_no_network(server, site):
    folder = fetch(site)
    server.log.clear()
    assert fetch(offline(site)) == folder
    assert fetch(offline(site), revision=folder.name) == folder
    assert not server.log


def test_offline_without_the_model_says_so(server, site):
    with pytest.raises(SourceError, match=r"is not in .*, and this run is offline") as caught:
        fetch(offline(site))
    assert f"qwen3q download {REPO}" in caught.value.hint
    assert not server.log


def test_offline_with_a_part_of_the_model_names_what_is_missing(server, site):
    fetch_config(REPO, None, site)
    with pytest.raises(SourceError, match=r"only partly .* tokenizer\.json is missing"):
        fetch(offline(site))
    folder = fetch(site)
    (folder / SHARD).unlink()
    with pytest.raises(SourceError, match=f"{SHARD} is missing"):
        fetch(offline(site))


@pytest.mark.parametrize(
    ("revision", "error", "words"),
    [
        ("v9", SourceError, f"{REPO} has no revision 'v9'"),
        ("0" * 40, SourceError, f"{REPO} has no revision"),
        ("../x", UsageError, "'../x' is no revision"),
        ("a/../b", UsageError, "is no revision"),
    ],
)
def test_wrong_revision(server, site, revision, error, words):
    with pytest.raises(error, match=words):
        plan_download(REPO, revision, site)


def test_unknown_model(server, site):
    with pytest.raises(SourceError, match="Qwen/Qwen3-9B is not on the Hub") as caught:
        plan_download("Qwen/Qwen3-9B", None, site)
    assert "qwen3-8b" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint


def test_private_model_needs_its_token(server, site, monkeypatch):
    server.repos[REPO].token = "hf_right"
    with pytest.raises(SourceError, match="or it is private"):
        fetch(site)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError, match="may not read"):
        fetch(site)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    server.log.clear()
    assert (fetch(site) / SHARD).is_file()
    tokens = {request.path.startswith("/cdn/"): request.token for request in server.log}
    assert tokens == {True: None, False: "Bearer hf_right"}


def test_gated_model_needs_its_token(server, site, monkeypatch):
    server.repos[REPO].token, server.repos[REPO].gated = "hf_right", True
    with pytest.raises(SourceError, match="is gated") as caught:
        fetch(site)
    assert f"{server.endpoint}/{REPO}" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert (fetch(site) / SHARD).is_file()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept this token"),
        (403, "may not read"),
        (404, "answered HTTP 404"),
        (500, "trouble of its own .HTTP 500"),
        (503, "trouble of its own .HTTP 503"),
    ],
)
def test_bad_status_is_one_sentence(server, site, status, words):
    server.status = status
    with pytest.raises(SourceError, match=words) as caught:
        fetch(site)
    assert "\n" not in caught.value.message + caught.value.hint


def test_no_network(site):
    dead = HubSite("http://127.0.0.1:9", site.cache)
    with pytest.raises(SourceError, match=r"no connection to the Hub at http://127\.0\.0\.1:9"):
        plan_download(REPO, None, dead)


def test_something_that_is_no_hub(server, site, monkeypatch):
    def answer(self, name, revision):
        self._send(200, b"<html>welcome</html>", {"Content-Type": "text/html"})

    monkeypatch.setattr("hub_server._Handler._list", answer)
    with pytest.raises(SourceError, match="does not answer as the Hub"):
        plan_download(REPO, None, site)


@pytest.mark.parametrize("checksum", ["../../../evil", "", None, "g" * 64])
def test_checksum_that_could_be_a_path_is_refused(server, site, monkeypatch, checksum):
    monkeypatch.setattr("hub_server.sha256", lambda _: checksum)
    with pytest.raises(SourceError, match="does not answer as the Hub"):
        plan_download(REPO, None, site)


def test_disk_space_is_checked_before_the_start(server, site, monkeypatch):
    monkeypatch.setattr(hub, "_free_bytes", lambda _: 1000)
    with pytest.raises(DiskError, match=r"needs 0\.00 GB more"):
        fetch(site)
    assert not server.file_requests("config.json")


def test_disk_that_fills_up_is_named(server, site, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_transfer._Target, "write", full)
    with pytest.raises(DiskError, match="disk is full"):
        fetch(site)


def test_two_files_with_the_same_bytes(server, site):
    server.repos[REPO].files["added_tokens.json"] = b"{}"
    server.repos[REPO].files["special_tokens_map.json"] = b"{}"
    folder = fetch(site)
    assert (folder / "added_tokens.json").read_bytes() == b"{}"
    assert (folder / "special_tokens_map.json").read_bytes() == b"{}"
