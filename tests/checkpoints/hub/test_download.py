"""From a model's name to its files: LAVIS' files from a web server, repositories from a hub, both on this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from openblip import fetch as fetching
from openblip.checkpoints.blip2_models import BERT
from openblip.checkpoints.hub import sources
from openblip.checkpoints.hub.download import download, find_files
from openblip.checkpoints.hub.repositories import RemoteFile, choose_files, find_repository, hub_cache, is_complete
from openblip.checkpoints.loading import load_parts
from openblip.errors import DownloadError
from openblip.fetch import HEADROOM
from tests.checkpoints.official import official
from tests.checkpoints.web import COMMIT, Page, Web, add_repository, serve

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
        monkeypatch.setattr(sources, "LAVIS_URL", f"{running.url}/LAVIS/")
        add_repository(running, HUB_MODEL, FILES)
        add_repository(running, BERT, {"tokenizer.json": b"{}", "vocab.txt": b"words", "model.safetensors": b"big"})
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
    assert file.source == official(HUB_MODEL).files[0]
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


@pytest.mark.parametrize(
    "name", ["blip2_opt/pretrain_opt2.7", "blip2-opt-2.7b", "../hosts/secret", "./x", "a/b/c", "a b/c"]
)
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
        "x/broken": (400, {}, r"refuses x/broken \(it answered 400\): try again later$"),
        "x/busy": (429, {"Retry-After": "90"}, r"refuses x/busy \(it answered 429\): try again in 90 seconds$"),
        "x/full": (503, {}, r"refuses x/full \(it answered 503\): try again later$"),
    }
    for name, (status, headers, message) in faults.items():
        for path in (f"/api/models/{name}", f"/api/models/{name}/revision/v9"):
            web.pages[path] = Page(b"", headers=headers, statuses=[status] * 20)
        with pytest.raises(DownloadError, match=message) as raised:
            download(name, revision="v9" if name == "x/stopped" else None)
        assert "\n" not in str(raised.value)


def test_what_answers_may_be_no_hub(web: Web) -> None:
    for body in (b"<html>please log in</html>", b"[]", b"{}"):
        web.pages["/api/models/x/odd"] = Page(body, headers={"Content-Type": "application/json"})
        with pytest.raises(DownloadError, match=r"(what answers for x/odd is not the Hugging Face hub|holds no files)"):
            download("x/odd")


def test_files_that_the_hub_lists_may_be_refused(web: Web) -> None:
    add_repository(web, "x/gated", FILES)
    web.pages["/x/gated/resolve/main/config.json"].statuses = [403] * 9
    with pytest.raises(DownloadError, match="x/gated is given to registered people only"):
        download("x/gated")
    add_repository(web, "x/gone", FILES)
    web.pages["/x/gone/resolve/main/config.json"].statuses = [404] * 9
    web.pages["/x/gone/resolve/main/config.json"].headers["X-Error-Code"] = "EntryNotFound"
    with pytest.raises(DownloadError, match="a file that x/gone lists is not there"):
        download("x/gone")


def test_places_that_cannot_be_written(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the disk, not of the network, speaks what is told."""
    file = tmp_path / "file"
    file.write_text("mine")
    for options in ({"local_dir": file}, {"cache_dir": file}):
        with pytest.raises(DownloadError, match=r"cannot be written \(Not a directory\): give another folder"):
            download(HUB_MODEL, **options)
    monkeypatch.setenv("HF_HOME", str(file / "home"))
    for name in (HUB_MODEL, LAVIS_MODEL):
        with pytest.raises(DownloadError, match=r"cannot be written \(Not a directory\): give another folder"):
            download(name)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "sha256"),
    [("../../evil.bin", "0" * 64), ("/evil.bin", "0" * 64), ("C:\\evil.bin", "0" * 64), ("x.bin", "../../../evil")],
)
def test_a_hostile_list_leads_nowhere(web: Web, tmp_path: Path, name: str, sha256: str) -> None:
    add_repository(web, "x/evil", FILES)
    listed = json.loads(web.pages["/api/models/x/evil"].body)
    listed["siblings"] = [{"rfilename": name, "size": 4, "lfs": {"size": 4, "sha256": sha256, "pointerSize": 1}}]
    web.pages["/api/models/x/evil"].body = json.dumps(listed).encode()
    with pytest.raises(DownloadError, match="is not the Hugging Face hub"):
        download("x/evil", include=["*"], local_dir=tmp_path / "a" / "b")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


def test_an_empty_repository_holds_no_model(web: Web) -> None:
    add_repository(web, "x/empty", {})
    with pytest.raises(DownloadError, match="x/empty holds no files of a model: check the name"):
        download("x/empty")


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


def test_a_damaged_file_of_the_hub_is_fetched_anew(web: Web) -> None:
    path = f"/{HUB_MODEL}/resolve/main/model.safetensors"
    web.pages[path].lies = [FILES["model.safetensors"][::-1]] * 2
    with pytest.raises(DownloadError, match=r"model\.safetensors arrived damaged twice \(its SHA-256 differs\)"):
        download(HUB_MODEL)
    assert find_files(HUB_MODEL) is None
    web.pages[path].lies = [FILES["model.safetensors"][::-1]]
    (file,) = download(HUB_MODEL)
    assert (file.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    add_repository(web, "x/small", FILES)
    web.pages["/x/small/resolve/main/config.json"].lies = [b"{}"]
    with pytest.raises(DownloadError, match=r"a file of x/small arrived damaged: run it again$"):
        download("x/small")
    assert download("x/small")[0].path.is_dir()


LARGE = os.urandom(400_000)
WEIGHTS_PAGE = "/x/large/resolve/main/model.safetensors"


@pytest.mark.parametrize("place", ["cache", "local"])
def test_a_large_file_of_the_hub_goes_on_where_it_stopped(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Also in another process, when the first one was killed."""
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    options = {"local_dir": tmp_path / "here"} if place == "local" else {}
    add_repository(web, "x/large", {**FILES, "model.safetensors": LARGE})
    web.pages[WEIGHTS_PAGE].cuts = [150_000] + [0] * fetching.ATTEMPTS
    with pytest.raises(DownloadError, match="the connection ended 250000 bytes early"):
        download("x/large", **options)
    assert find_files("x/large", **options) is None
    web.pages[WEIGHTS_PAGE].cuts = []
    web.asked.clear()
    (file,) = download("x/large", **options)
    assert (file.path / "model.safetensors").read_bytes() == LARGE
    assert web.gets(WEIGHTS_PAGE) == ["bytes=150000-"]
    assert files_in(file.path) == NEEDED
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".part", ".version"))]


def test_a_folder_of_ones_own_is_filled_from_the_cache(web: Web, tmp_path: Path) -> None:
    download(HUB_MODEL)
    web.asked.clear()
    (file,) = download(HUB_MODEL, local_dir=tmp_path / "here")
    assert (file.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert web.gets(f"/{HUB_MODEL}/resolve/main/model.safetensors") == []


def test_a_token_is_told_to_the_hub_alone(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files lie on other servers, which refuse strangers' tokens, and should not see them."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    add_repository(web, "x/large", {**FILES, "model.safetensors": LARGE})
    with serve() as storage:
        storage.pages["/blob"] = Page(LARGE)
        web.pages[WEIGHTS_PAGE].moved = f"{storage.url}/blob"
        (file,) = download("x/large", local_dir=tmp_path / "here")
        assert (file.path / "model.safetensors").read_bytes() == LARGE
        assert storage.tokens == [""]
    assert web.tokens[-1] == "Bearer hf_secret"


@pytest.mark.parametrize("last", ["config.json", "vocab.txt", "model.safetensors"])
def test_half_of_a_model_is_never_taken_for_all(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    page = web.pages[f"/{HUB_MODEL}/resolve/main/{last}"]
    for options in ({}, {"local_dir": tmp_path / "here"}):
        page.statuses = [403] * 3
        with pytest.raises(DownloadError):
            download(HUB_MODEL, **options)
        assert find_files(HUB_MODEL, **options) is None
        page.statuses = []
        assert files_in(download(HUB_MODEL, **options)[0].path) == NEEDED


def test_weights_that_another_program_fetched_lack_the_words(web: Web) -> None:
    download(HUB_MODEL, exclude=["*.txt", "token*"])
    assert find_files(HUB_MODEL) is None
    web.asked.clear()
    assert files_in(download(HUB_MODEL)[0].path) == NEEDED
    assert web.gets(f"/{HUB_MODEL}/resolve/main/model.safetensors") == []


def test_room_for_all_is_checked_first(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**15, 0, HEADROOM + 10_000))
    with pytest.raises(DownloadError, match=r"blip2/pretrain takes 2\.8 GB: free some, or give another folder"):
        download(LAVIS_MODEL)
    with pytest.raises(DownloadError, match=f"{HUB_MODEL} takes 0.0 MB"):
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


def test_a_folder_of_ours_that_is_shared_on_the_hub_loads_by_name(
    web: Web, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {file.name: file.read_bytes() for file in tiny_model_folder.iterdir()}
    add_repository(web, "someone/tiny", files)
    first = load_parts("someone/tiny")
    assert find_files("someone/tiny") is not None
    web.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again, expected = load_parts("someone/tiny"), load_parts(tiny_model_folder).network.state_dict()
    assert not web.asked
    for found in (first, again):
        state = found.network.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    # Half of its words are not enough.
    (find_files("someone/tiny") or ())[0].path.joinpath("qformer_tokenizer.json").unlink()
    assert find_files("someone/tiny") is None


def test_a_folder_without_all_its_shards_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
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


@pytest.mark.parametrize("piece", [fetching.PIECE, 3_000])  # a small one is still in the file's buffer when it fails
@pytest.mark.parametrize("size", [0, 3, 10_000])
def test_a_full_disk_is_told_with_the_name_of_a_file(
    web: Web, tmp_path: Path, size: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PIECE", piece)
    resource = pytest.importorskip("resource", reason="there are no limits on files' sizes here")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(DownloadError) as caught:
            download(HUB_MODEL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = str(caught.value)
    assert str(tmp_path / "home/hub/models--Salesforce--blip2-itm-vit-g") in told and "\n" not in told
    assert " cannot be written (File too large): " in told
    assert download(HUB_MODEL)[0].path.is_dir()
