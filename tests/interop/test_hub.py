"""Model folders by path and by hub id, with huggingface_hub's own cache layout and no network."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from tclip.interop.hub import resolve

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def home(tmp_path):
    """A HF_HOME in which owner/name is cached at two revisions."""
    cache = tmp_path / "hub/models--owner--name"
    for folder in ("blobs", "refs", *(f"snapshots/{commit}" for commit in COMMITS.values())):
        (cache / folder).mkdir(parents=True)
    for ref, commit in COMMITS.items():
        (cache / "refs" / ref).write_text(commit)
        (cache / "blobs" / ref).write_text(ref)
        (cache / f"snapshots/{commit}/config.json").symlink_to(f"../../blobs/{ref}")
        (cache / f"snapshots/{commit}/model.safetensors").symlink_to(f"../../blobs/{ref}")
    return tmp_path


@pytest.fixture
def offline(home, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_an_existing_folder_comes_first(home, offline, tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "owner/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/owner") == tmp_path / "owner"


def test_a_hub_id_is_found_in_the_cache_at_its_revision(offline):
    for name, ref in (
        ("owner/name", "main"),
        ("owner/name@main", "main"),
        ("owner/name@v2", "v2"),
        (f"owner/name@{COMMITS['v2']}", "v2"),
    ):
        folder = resolve(name)
        assert folder.name == COMMITS[ref]
        assert (folder / "config.json").read_text() == ref


def test_the_environment_of_huggingface_hub_counts(home):
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    code = "from tclip.interop.hub import resolve; print(resolve('owner/name'))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=own | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(out.stdout.strip()).samefile(
        home / f"hub/models--owner--name/snapshots/{COMMITS['main']}"
    )


@pytest.mark.parametrize("name", ["other/name", "owner/name@v3", "own er/name"])
def test_what_is_not_cached_offline_says_how_to_download_it(name, offline):
    repo_id, _, revision = name.partition("@")
    command = f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")
    with pytest.raises(FileNotFoundError, match=command) as info:
        resolve(name)
    assert str(info.value).startswith(f"{repo_id} is no folder here")
    assert "--include '*.safetensors'" in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "name", ["./owner/name", "../name", "/absent/name", "~/name", "a/b/c", "name", "/", "a/", "/b"]
)
def test_what_looks_like_a_path_never_reaches_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    if name == "/":
        assert resolve(name) == Path("/")
        return
    with pytest.raises(FileNotFoundError, match=f"no model folder at {name}"):
        resolve(name)


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is a file; give the folder"):
        resolve(file)


def test_only_what_is_read_is_downloaded(monkeypatch, tmp_path):
    asked = {}

    def download(repo_id, **kwargs):
        asked.update(kwargs, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "model.safetensors").touch()
    assert resolve("owner/name@v2") == tmp_path
    assert (asked["repo_id"], asked["revision"]) == ("owner/name", "v2")
    files = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "merges.txt",
        "pytorch_model.bin",
        "open_clip_pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "modeling.py",
        "onnx/config.json",
        "README.md",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == files[:3]


def test_a_cached_copy_without_weights_says_what_to_download(home, offline):
    for weights in home.rglob("model.safetensors"):
        weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors; .*hf download owner/name"):
        resolve("owner/name")


def test_the_prefixes_of_open_clip(monkeypatch, tmp_path):
    asked = []
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "cached").mkdir()
    (tmp_path / "cached/model.safetensors").touch()
    monkeypatch.chdir(tmp_path)

    def download(repo_id, revision, **_):
        asked.append((repo_id, revision))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("hf-hub:owner/name@v2") == tmp_path / "cached"
    assert asked == [("owner/name", "v2")]
    assert resolve("local-dir:owner/name") == Path("owner/name")
    assert resolve(f"local-dir:{tmp_path}/owner/name") == tmp_path / "owner/name"
    with pytest.raises(FileNotFoundError, match="no model folder at owner/other"):
        resolve("local-dir:owner/other")
    assert len(asked) == 1
