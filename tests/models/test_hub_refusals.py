"""What a Hub does not give, and what keeps it from arriving: each a sentence."""

from __future__ import annotations

import errno

import pytest
from hub_server import Repo

from qwen3q.errors import DiskError, SourceError, UsageError
from qwen3q.models import hub, hub_transfer
from qwen3q.models.hub import HubSite, plan_download
from tests.models.tiny_hub import REPO, SHARD, fetch


@pytest.mark.parametrize(
    ("files", "word"), [({"model.bin": b"x"}, "pickles"), ({"a.gguf": b"x"}, "GGUF"), ({}, "Give")]
)
def test_repository_without_safetensors(server, site, files, word):
    server.repos[REPO] = Repo({"config.json": b"{}"} | files)
    with pytest.raises(SourceError, match=r"holds no \*\.safetensors") as caught:
        plan_download(REPO, None, site)
    assert word in caught.value.hint


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
