"""``qwen3q download`` against a local Hub: what is printed, fetched and exited with."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import HubServer, Repo, as_nobody, folder_files

from qwen3q.cli.app import main
from qwen3q.models import hub
from qwen3q.models.hub import HubSite

REPO = "Qwen/Qwen3-8B"
WEIGHTS = "model.safetensors"


@pytest.fixture
def server(demo_folder, tmp_path, monkeypatch):
    with HubServer() as local:
        local.repos[REPO] = Repo(folder_files(demo_folder))
        here = HubSite(local.endpoint, tmp_path / "cache")
        monkeypatch.setattr(hub, "default_site", lambda offline: replace(here, offline=offline))
        as_nobody(monkeypatch)
        yield local


@pytest.fixture
def run(server, monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwen3q", "download", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


def test_dry_run_lists_files_and_fetches_none(run, server, demo_folder, tmp_path):
    code, out, _ = run("qwen3-8b", "--dry-run")
    assert code == 0
    files = folder_files(demo_folder)
    for name in files:
        assert name in out
    assert f"{REPO} at main, commit {server.repos[REPO].commit}" in out
    total = sum(map(len, files.values()))
    assert f"Total {total / 1e6:.2f} MB in 5 files; {total / 1e6:.2f} MB to download" in out
    assert [request.path for request in server.log] == [f"/api/models/{REPO}/revision/main"]
    assert not (tmp_path / "cache").exists()


def test_download_prints_the_folder(run, demo_folder):
    code, out, err = run("qwen3-8b")
    assert code == 0
    assert folder_files(Path(out.strip())) == folder_files(demo_folder)
    assert "in 5 files, 5 checksums verified" in err


def test_dry_run_after_a_download_has_nothing_to_fetch(run):
    run(REPO)
    _, out, _ = run(REPO, "--dry-run")
    assert out.count("in the cache") == 5
    assert "; 0 B to download;" in out


def test_json(run, server, demo_folder):
    planned = json.loads(run("qwen3-8b", "--dry-run", "--json")[1])
    sizes = {name: len(data) for name, data in folder_files(demo_folder).items()}
    assert {file["name"]: file["bytes"] for file in planned["files"]} == sizes
    assert planned["dry_run"] is True
    assert planned["download_bytes"] == planned["total_bytes"] == sum(sizes.values())
    assert planned["commit"] == server.repos[REPO].commit
    assert server.served_bytes(WEIGHTS) == 0
    code, out, err = run("qwen3-8b", "--json", "--revision", planned["commit"])
    done = json.loads(out)
    assert code == 0
    assert not err
    assert folder_files(Path(done["folder"])) == folder_files(demo_folder)


def test_offline(run, server):
    code, out, err = run("qwen3-8b", "--offline")
    assert code == 1
    assert not out
    assert "this run is offline" in err
    folder = run("qwen3-8b")[1]
    server.log.clear()
    assert run("qwen3-8b", "--offline")[:2] == (0, folder)
    assert not server.log


def test_damage_in_the_cache_is_reported_and_repaired(run):
    folder = Path(run("qwen3-8b")[1].strip())
    blob = (folder / WEIGHTS).resolve()
    original = blob.read_bytes()
    blob.write_bytes(bytes([original[0] ^ 1]) + original[1:])
    code, out, err = run("qwen3-8b")
    assert code == 1
    assert not out
    assert f"{WEIGHTS} of {REPO} is damaged" in err
    assert run("qwen3-8b")[0] == 0
    assert blob.read_bytes() == original


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo"], 1, "is on this machine already"),
        (["qwen3-9b"], 1, "Did you mean qwen3-8b"),
        (["someone/nothing"], 1, "is not on the Hub"),
        (["qwen3-8b", "--revision", "v9"], 1, "has no revision 'v9'"),
        (["qwen3-8b", "--revision", "../x"], 2, "is no revision"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, code, words):
    found, out, err = run(*arguments)
    assert found == code
    assert not out
    assert words in err
    assert "Traceback" not in err
