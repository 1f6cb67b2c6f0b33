"""From a model's name to its files: LAVIS' files from a web server, repositories from a hub, both on this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from openblip.checkpoints import zoo
from openblip.checkpoints.download import download, find_files
from openblip.checkpoints.hub import RemoteFile, choose_files, find_repository, hub_cache, is_complete
from openblip.errors import DownloadError
from openblip.fetch import HEADROOM

from .web import COMMIT, Page, Web, add_repository, serve

HUB_MODEL = "Salesforce/blip2-itm-vit-g"
LAVIS_MODEL = "blip2/pretrain"
FILES = {
    "config.json": b'{"model_type": "blip-2"}',
    "tokenizer.json": b"{}",
    "vocab.txt": b"words",
    "README.md": b"a model",
    ".gitattributes": b"",
    "model.safetensors": os.urandom(20_000),
    "pytorch_model.bin": b"the same again",
    "tf_model.h5": b"for others",
    "onnx/model.onnx": b"for others",
    "onnx/config.json": b"{}",
}
NEEDED = {"config.json", "tokenizer.json", "vocab.txt", "README.md", "model.safetensors"}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A hub and LAVIS' server in one, a home of its own, and a disk with room for everything."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, 10**15))
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(zoo, "LAVIS_URL", f"{running.url}/LAVIS/")
        add_repository(running, HUB_MODEL, FILES)
        add_repository(running, zoo.BERT, {"tokenizer.json": b"{}", "vocab.txt": b"words", "model.safetensors": b"big"})
        for file in ("blip2_pretrained.pth", "eva_vit_g.pth"):
            running.pages[f"/LAVIS/{file}"] = Page(file.encode() * 1000).with_google_hash()
        yield running


def files_in(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts
    }


def test_a_repository_lands_in_the_hubs_cache_in_one_format(web: Web, tmp_path: Path) -> None:
    assert find_files(HUB_MODEL) is None
    (file,) = download(HUB_MODEL)
    assert file.source == zoo.get_model(HUB_MODEL).sources[0]
    assert file.path == tmp_path / "home/hub/models--Salesforce--blip2-itm-vit-g/snapshots" / COMMIT
    assert files_in(file.path) == NEEDED
    assert (file.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    # what was downloaded is found, also by its commit, and not asked for again
    web.asked.clear()
    assert find_files(HUB_MODEL) == find_files(HUB_MODEL, revision=COMMIT) == download(HUB_MODEL) == (file,)
    assert find_files(HUB_MODEL, revision="other") is None
    assert web.asked == []


def test_a_lavis_model_comes_from_several_places(web: Web, tmp_path: Path) -> None:
    main, vision, words = download(LAVIS_MODEL)
    assert main.path == tmp_path / "home/openblip/lavis/blip2_pretrained.pth"
    assert vision.path.read_bytes() == b"eva_vit_g.pth" * 1000
    assert files_in(words.path) == {"tokenizer.json", "vocab.txt"}
    assert find_files(LAVIS_MODEL) == find_files("blip2_image_text_matching/pretrain") == (main, vision, words)
    vision.path.unlink()
    assert find_files(LAVIS_MODEL) is None
    web.asked.clear()
    download(LAVIS_MODEL)
    assert [path for _, path, _ in web.asked if path.startswith("/LAVIS")] == ["/LAVIS/eva_vit_g.pth"]


def test_files_that_lavis_itself_has_fetched_are_used(web: Web, tmp_path: Path) -> None:
    theirs = tmp_path / "xdg/torch/hub/checkpoints/eva_vit_g.pth"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"already here")
    assert [file.path for file in download(LAVIS_MODEL)][1] == theirs
    assert web.gets("/LAVIS/eva_vit_g.pth") == []


def test_folders_of_ones_own(web: Web, tmp_path: Path) -> None:
    (hub,) = download(HUB_MODEL, local_dir=tmp_path / "model")
    assert hub.path == tmp_path / "model"
    assert files_in(tmp_path / "model") == NEEDED
    assert find_files(HUB_MODEL, local_dir=tmp_path / "model") == (hub,)
    download(LAVIS_MODEL, local_dir=tmp_path / "lavis")
    words = {f"bert-base-uncased/{name}" for name in ("tokenizer.json", "vocab.txt")}
    found = {name for name in files_in(tmp_path / "lavis") if not name.endswith(".lock")}
    assert found == {"blip2_pretrained.pth", "eva_vit_g.pth"} | words
    assert find_files(LAVIS_MODEL, local_dir=tmp_path / "lavis") is not None
    cached = download(HUB_MODEL, cache_dir=tmp_path / "cache")
    assert cached == find_files(HUB_MODEL, cache_dir=tmp_path / "cache")
    assert cached[0].path.parts[-4:-2] == ("cache", "models--Salesforce--blip2-itm-vit-g")
    assert find_files(HUB_MODEL) is None


def test_patterns_choose(web: Web, tmp_path: Path) -> None:
    (hub,) = download(HUB_MODEL, include=["*.bin", "config.json"], exclude=["onnx/*"])
    assert files_in(hub.path) == {"pytorch_model.bin", "config.json"}
    (vision,) = download(LAVIS_MODEL, include=["eva*"])
    assert vision.path.name == "eva_vit_g.pth"
    assert len(download(LAVIS_MODEL, exclude=["eva*"], local_dir=tmp_path / "some")) == 2
    with pytest.raises(DownloadError, match="no file of blip2/pretrain fits these patterns"):
        download(LAVIS_MODEL, include=["*.onnx"])


def test_any_repository_can_be_fetched(web: Web) -> None:
    add_repository(web, "someone/fine-tuned", FILES, revision="v2")
    (file,) = download("someone/fine-tuned", revision="v2")
    assert files_in(file.path) == NEEDED
    assert find_files("someone/fine-tuned", revision="v2") == (file,)


def test_the_bundled_model_needs_nothing() -> None:
    assert download("mini") == find_files("mini") == ()


@pytest.mark.parametrize("name", ["blip2_opt/pretrain_opt2.7", "blip2-opt-2.7b", "../hosts/secret", "a/b/c"])
def test_a_name_of_nothing(web: Web, name: str) -> None:
    with pytest.raises(DownloadError, match="neither an official model nor a repository's name: "):
        download(name)
    assert web.asked == []


def test_what_the_hub_refuses(web: Web) -> None:
    faults = {
        "x/gated": (401, {"X-Error-Code": "GatedRepo"}, "registered people only"),
        "x/missing": (404, {"X-Error-Code": "RepoNotFound"}, "is not on the Hugging Face hub, or private"),
        "x/secret": (401, {}, "is not on the Hugging Face hub, or private"),
        "x/stopped": (404, {"X-Error-Code": "RevisionNotFound"}, "has no revision v9"),
        "x/forbidden": (403, {}, "registered people only"),
        "x/broken": (400, {}, "refuses x/broken"),
    }
    for name, (status, headers, message) in faults.items():
        for path in (f"/api/models/{name}", f"/api/models/{name}/revision/v9"):
            web.pages[path] = Page(b"", headers=headers, statuses=[status] * 20)
        with pytest.raises(DownloadError, match=message) as raised:
            download(name, revision="v9" if name == "x/stopped" else None)
        assert "\n" not in str(raised.value)


def test_a_repository_that_is_not_there_may_be_a_typo(web: Web) -> None:
    with pytest.raises(DownloadError, match=r"did you mean Salesforce/blip2-opt-2\.7b or "):
        download("Salesforce/blip2-opt-27b")
    with pytest.raises(DownloadError, match=r"or set HF_TOKEN$"):
        download("someone/else")


def test_no_hub_at_all(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"the Hugging Face hub cannot be reached for .*: check the network"):
        download(HUB_MODEL)


def test_offline_only_what_is_there(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    found = download(HUB_MODEL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    web.asked.clear()
    assert download(HUB_MODEL) == found
    with pytest.raises(DownloadError, match="blip2/pretrain is not on this machine, and HF_HUB_OFFLINE forbids"):
        download(LAVIS_MODEL)
    assert web.asked == []


def test_a_damaged_file_of_the_hub_is_deleted(web: Web) -> None:
    path = f"/{HUB_MODEL}/resolve/main/model.safetensors"
    web.pages[path].lies = [FILES["model.safetensors"][::-1]]
    with pytest.raises(DownloadError, match=f"model.safetensors of {HUB_MODEL} arrived damaged: run it again"):
        download(HUB_MODEL)
    assert find_files(HUB_MODEL) is None
    (file,) = download(HUB_MODEL)
    assert (file.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_room_for_all_is_checked_first(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, HEADROOM + 10_000))
    with pytest.raises(DownloadError, match=r"blip2/pretrain takes 2\.8 GB: free some, or give another folder"):
        download(LAVIS_MODEL)
    with pytest.raises(DownloadError, match=f"{HUB_MODEL} takes 0.0 GB"):
        download(HUB_MODEL)
    assert not [path for method, path, _ in web.asked if method == "GET" and not path.startswith("/api/")]


def test_what_has_come_already_takes_no_room(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_repository(web, "x/large", {**FILES, "model.safetensors": bytes(10_000_000)})
    (file,) = download("x/large")
    (file.path / "tokenizer.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, HEADROOM + 10_000))
    (file.path / "config.json").unlink()
    assert files_in(download("x/large")[0].path) == NEEDED


def test_revisions_are_for_repositories(web: Web) -> None:
    with pytest.raises(DownloadError, match="has no revisions"):
        download(LAVIS_MODEL, revision="main")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("config.json pytorch_model.bin flax_model.msgpack", "config.json pytorch_model.bin"),
        (
            "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json "
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
            "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json",
        ),
        (
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json flax_model.msgpack.index.json LICENSE.pdf",
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json LICENSE.pdf",
        ),
        ("spiece.model vocab.json merges.txt onnx/model.safetensors", "spiece.model vocab.json merges.txt"),
        ("model.safetensors pytorch_model.bin optimizer.pt training_args.bin", "model.safetensors"),
    ],
)
def test_weights_are_taken_in_one_format(names: str, chosen: str) -> None:
    files = [RemoteFile(name) for name in names.split()]
    assert {file.name for file in choose_files(files)} == set(chosen.split())


def test_a_folder_without_all_its_shards_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not is_complete(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    (tmp_path / "one.safetensors").touch()
    assert not is_complete(tmp_path)
    (tmp_path / "two.safetensors").touch()
    assert is_complete(tmp_path)
    index.write_text("[]")
    assert not is_complete(tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub_cache() == Path.home() / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub_cache() == tmp_path / "xdg/huggingface/hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub_cache() == tmp_path / "home/hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert hub_cache() == tmp_path / "cache"
    assert find_repository("a/b") is None
