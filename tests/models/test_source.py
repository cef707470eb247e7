"""Every kind of name a model can have, and what is said when there is no such model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hub_server import HubServer, Repo, as_nobody, folder_files

from qwen3q.errors import ModelError, SourceError, UsageError
from qwen3q.models.catalog import catalog, find_release
from qwen3q.models.config import read_config
from qwen3q.models.hub import HubSite
from qwen3q.models.source import SourceKind, describe, hub_repo, resolve

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def server(demo_folder, monkeypatch):
    as_nobody(monkeypatch)
    with HubServer() as local:
        local.repos["Qwen/Qwen3-8B"] = Repo(folder_files(demo_folder))
        local.repos["someone/Tune"] = Repo(folder_files(demo_folder))
        yield local


@pytest.fixture
def no_hub(tmp_path):
    return HubSite(NOWHERE, tmp_path / "cache")


@pytest.mark.parametrize("release", catalog(), ids=lambda release: release.name)
def test_releases_are_described_without_a_network(release, no_hub):
    for name in (release.name, release.name.upper(), release.title, *release.repos):
        found = describe(name, site=no_hub)
        assert found.config == release.config
        assert found.release == release
        assert found.folder is None
        assert found.repo in release.repos
    assert describe(release.name, site=no_hub).repo == release.repos[0]
    assert not no_hub.cache.exists()


def test_alias_and_hub_id_name_the_same_model(no_hub):
    alias, hub_id = describe("qwen3-8b", site=no_hub), describe("Qwen/Qwen3-8B", site=no_hub)
    assert (alias.kind, hub_id.kind) == (SourceKind.ALIAS, SourceKind.HUB)
    assert alias.title == hub_id.title == "Qwen3-8B"
    assert alias.repo == hub_id.repo == "Qwen/Qwen3-8B"


def test_a_release_with_two_checkpoints_keeps_the_one_that_was_named(no_hub):
    found = describe("qwen/qwen3-4b-thinking-2507", site=no_hub)
    assert found.repo == "Qwen/Qwen3-4B-Thinking-2507"
    assert found.title == "Qwen3-4B-Thinking-2507"
    assert found.release == find_release("qwen3-4b-2507")


@pytest.mark.parametrize("find", [describe, resolve])
def test_demo_and_folder_need_no_network(find, demo_folder, no_hub, tmp_path):
    demo = find("demo", site=no_hub)
    assert demo.kind is SourceKind.DEMO
    assert demo.folder == demo_folder
    link = tmp_path / "my-model"
    link.symlink_to(demo_folder)
    found = find(str(demo_folder), site=no_hub)
    assert found.kind is SourceKind.FOLDER
    assert found.title == "demo"
    assert found.folder == demo_folder
    assert found.config == read_config(demo_folder)
    assert found.release is None


def test_resolve_downloads_an_alias(server, site, demo_folder):
    seen = []
    found = resolve("qwen3-8b", site=site, progress=lambda *report: seen.append(report))
    assert found.kind is SourceKind.ALIAS
    assert found.repo == "Qwen/Qwen3-8B"
    assert found.revision == server.repos["Qwen/Qwen3-8B"].commit
    assert folder_files(found.folder) == folder_files(demo_folder)
    assert found.config == read_config(demo_folder)
    assert seen[-1][0] == seen[-1][1]
    assert seen[-1][2] == "Downloading Qwen/Qwen3-8B"


def test_unknown_hub_model_is_described_by_its_config_alone(server, site, demo_folder):
    found = describe("someone/Tune", site=site)
    assert found.config == read_config(demo_folder)
    assert found.folder is None
    assert found.release is None
    assert found.revision == server.repos["someone/Tune"].commit
    assert server.served_bytes("model.safetensors") == 0
    assert resolve("someone/Tune", site=site, revision=found.revision).folder is not None


def test_folder_goes_before_a_hub_id_of_the_same_name(demo_folder, no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen3-8B").symlink_to(demo_folder)
    (tmp_path / "qwen3-8b").mkdir()
    assert resolve("Qwen/Qwen3-8B", site=no_hub).kind is SourceKind.FOLDER
    assert describe("qwen3-8b", site=no_hub).kind is SourceKind.ALIAS


def test_home_folder_is_expanded(demo_folder, tmp_path, monkeypatch, no_hub):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(demo_folder)
    assert resolve("~/model", site=no_hub).config == read_config(demo_folder)


@pytest.mark.parametrize("find", [describe, resolve, lambda name, site: hub_repo(name)])
@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("qwen3-9b", "There is no model 'qwen3-9b'", "Did you mean qwen3-8b"),
        ("llama", "There is no model 'llama'", "A model is a folder"),
        ("./missing", "There is no folder ./missing", "A model is a folder"),
        ("/a/b/c", "There is no folder /a/b/c", "A model is a folder"),
        ("some.gguf", "There is no file some.gguf", "A model is a folder"),
        ("some/where/deep", "There is no folder some/where/deep", "A model is a folder"),
        ("../../etc", "There is no folder", ""),
        ("", "'' names no model", "A model is a folder"),
        ("https://huggingface.co/Qwen/Qwen3-8B", "is an address", "its Hub id: Qwen/Qwen3-8B."),
        ("https://hf.co/a/b/tree/main", "is an address", "Give its Hub id: a/b."),
    ],
)
def test_unknown_names(find, name, words, hint, no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        find(name, site=no_hub)
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert not no_hub.cache.exists()


def test_a_link_to_nowhere_is_not_offered_as_itself(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "modal.gguf"):
        (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(SourceError) as caught:
        describe("model.gguf", site=no_hub)
    assert caught.value.hint == "Did you mean modal.gguf?"


@pytest.mark.parametrize("find", [describe, resolve])
@pytest.mark.parametrize("prefix", ["", "./", "{here}/"])
def test_a_mistyped_folder_is_named_with_what_lies_beside(
    find, prefix, no_hub, tmp_path, monkeypatch
):
    """Though ``out/Model`` might be a Hub id too, it is told that it is no folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "Qwen3-demo-AWQ").mkdir(parents=True)
    name = f"{prefix.format(here=tmp_path)}out/qwen3-demo-AWK"
    with pytest.raises(SourceError) as caught:
        find(name, site=no_hub)
    assert f"There is no folder {name}" in caught.value.message
    assert caught.value.hint.startswith("Did you mean")
    assert caught.value.hint.endswith("out/Qwen3-demo-AWQ?")


def test_a_hub_id_beside_a_local_folder_is_still_fetched(server, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    assert resolve("someone/Tune", site=site).kind is SourceKind.HUB


def test_a_bare_name_is_looked_for_among_models_here(demo_folder, no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-mine-AWX").mkdir()  # no model
    (tmp_path / "Qwen3-mine-AWQ").symlink_to(demo_folder)
    with pytest.raises(SourceError, match="There is no model 'Qwen3-mine-AWK'") as caught:
        describe("Qwen3-mine-AWK", site=no_hub)
    assert caught.value.hint == "Did you mean the folder Qwen3-mine-AWQ?"


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("model/model.safetensors", "Give its folder: model."),
        ("alone", "A model is a folder"),
        (os.devnull, "A model is a folder"),
        ("model.gguf", "Give the float model that it was made from"),
    ],
)
def test_file_in_place_of_a_folder(demo_folder, no_hub, tmp_path, monkeypatch, place, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(demo_folder)
    for name in ("alone", "model.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match="file, not a model folder") as caught:
        resolve(place, site=no_hub)
    assert hint in caught.value.hint


def test_folder_without_config(tmp_path, no_hub):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path), site=no_hub)


@pytest.mark.parametrize("name", ["demo", "folder"])
def test_revision_is_for_the_hub(name, demo_folder, no_hub):
    with pytest.raises(UsageError, match="has no revision 'main'"):
        resolve("demo" if name == "demo" else str(demo_folder), revision="main", site=no_hub)


def test_nothing_to_download_for_what_is_here(demo_folder):
    for name in ("demo", str(demo_folder)):
        with pytest.raises(SourceError, match="on this machine already"):
            hub_repo(name)


def test_describing_a_release_imports_no_network_code():
    program = (
        "import sys\n"
        "from qwen3q.models.source import describe\n"
        "describe('qwen3-8b'), describe('demo')\n"
        "heavy = {'huggingface_hub', 'torch', 'transformers', 'llama_cpp'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["variable", "argument"])
def test_environment_names_the_hub_and_offline(way, server, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read when the program starts."""
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path / "home"),
    }

    def run(offline: bool) -> subprocess.CompletedProcess[str]:
        program = (
            "from qwen3q.models.source import resolve\n"
            f"print(resolve('qwen3-8b', offline={offline and way == 'argument'}).folder)\n"
        )
        variables = {"HF_HUB_OFFLINE": "1"} if offline and way == "variable" else {}
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment | variables,
        )

    absent = run(offline=True)
    assert "is not in" in absent.stderr
    assert "this run is offline" in absent.stderr
    fetched = run(offline=False)
    assert fetched.stdout.startswith(str(tmp_path / "home" / "hub")), fetched.stderr
    requests = len(server.log)
    assert run(offline=True).stdout == fetched.stdout
    assert len(server.log) == requests
