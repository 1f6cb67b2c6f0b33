"""The feature cache: resumed after a kill, keyed by what features depend on, equal to direct computation."""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openblip.data import feature_store as features
from openblip.data.feature_store import FeatureStore, ViewPlan, fill, fingerprint
from openblip.data.sample import PackedFile
from openblip.data.views import make_view
from openblip.errors import OpenBlipError
from openblip.images.decode import load_image
from openblip.images.transform import ImageTransform, to_pixels
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig
from openblip.nn.vit import VisionTransformer, VitConfig
from tests import warm

TRANSFORM = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAN = ViewPlan(count=3, min_area=0.5)


def encode(pixels: Tensor) -> Tensor:
    """Four patches of six channels: cheap, and different for every view."""
    return torch.nn.functional.avg_pool2d(torch.cat([pixels, pixels**2], 1), 16).flatten(2).transpose(1, 2)


@pytest.fixture
def image_paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(40):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 255, (30 + number, 50, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def build(image_paths: list[Path], folder: Path, stop_at: int | None = None) -> tuple[FeatureStore, int]:
    """The store and how many batches were encoded for it; with `stop_at`, killed at that batch."""
    calls = 0

    def counted(pixels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return encode(pixels)

    store = FeatureStore(folder)
    assert not fill(store, image_paths, counted, TRANSFORM, PLAN, batch_size=2)
    return store, calls


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three batches each: [2 images, 3 views, 4 patches, 6 channels] float16."""
    monkeypatch.setattr(features, "SHARD_BYTES", 3 * 2 * 3 * 4 * 6 * 2)


def test_cached_views_equal_direct_ones(image_paths: list[Path], tmp_path: Path) -> None:
    store, _ = build(image_paths, tmp_path / "cache")
    chosen = [image_paths[7], image_paths[31], image_paths[7]]
    found = store.patches(chosen, [0, 2, 1])
    views = [
        make_view(load_image(path), path.name, view, PLAN.min_area)
        for path, view in zip(chosen, (0, 2, 1), strict=True)
    ]
    torch.testing.assert_close(found, encode(to_pixels(views, TRANSFORM)), rtol=1e-3, atol=1e-3)
    assert found.dtype == torch.float32


def test_a_killed_run_goes_on_to_the_same_features(image_paths: list[Path], tmp_path: Path) -> None:
    whole, _ = build(image_paths, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build(image_paths, tmp_path / "killed", stop_at=18)
    assert len(list((tmp_path / "killed").glob("*.npy"))) == 5
    resumed, batches = build(image_paths, tmp_path / "killed")
    assert batches == 5  # 30 of 40 images were kept
    views = [number % 3 for number in range(40)]
    assert torch.equal(whole.patches(image_paths, views), resumed.patches(image_paths, views))


@pytest.mark.parametrize("index", ["[", "[" * 99_999, "3", '{"a": 1}', "[[1], 2, 3, 4, 5, 6]"], ids=range(5))
def test_shards_that_were_cut_short_are_computed_again(image_paths: list[Path], tmp_path: Path, index: str) -> None:
    folder = tmp_path / "cache"
    whole, _ = build(image_paths, folder)
    expected = whole.patches(image_paths, [1] * 40)
    shards = sorted(path for path in folder.glob("*.npy") if len(np.load(path)) == 6)
    shards[0].write_bytes(shards[0].read_bytes()[:-2])
    shards[1].unlink()
    shards[2].with_suffix(".json").write_text(index)
    store = FeatureStore(folder)
    assert sorted(store.broken) == shards[:3]
    assert sum(image_path in store for image_path in image_paths) == 40 - 18
    again, batches = build(image_paths, folder)
    assert batches == 9 and torch.equal(again.patches(image_paths, [1] * 40), expected)


def test_features_are_of_a_file_as_it_is(image_paths: list[Path], tmp_path: Path) -> None:
    """An image that was changed, or another one of its name, is none that is known."""
    store, _ = build(image_paths, tmp_path / "cache")
    other = tmp_path / "other" / image_paths[0].name
    other.parent.mkdir()
    Image.new("RGB", (40, 40), (9, 200, 30)).save(other)
    Image.new("RGB", (40, 40), (200, 9, 30)).save(image_paths[1])
    fresh = FeatureStore(store.folder)
    assert image_paths[0] in fresh and other not in fresh and image_paths[1] not in fresh
    added, batches = build([other, *image_paths], store.folder)
    assert batches == 1
    differing = added.patches([other, image_paths[0]], [0, 0])
    assert not torch.equal(differing[0], differing[1])


def test_a_broken_image_is_named_and_the_others_are_kept(image_paths: list[Path], tmp_path: Path) -> None:
    image_paths[3].write_bytes(b"not an image")
    store = FeatureStore(tmp_path / "cache")
    bad = fill(store, image_paths, encode, TRANSFORM, PLAN, batch_size=2)
    assert [each.image for each in bad] == [image_paths[3]] and "03.png" in bad[0].problem
    assert [image_path for image_path in image_paths if image_path not in store] == [image_paths[3]]
    with pytest.raises(OpenBlipError, match=r"has no features of .*03\.png"):
        store.patches([image_paths[2], image_paths[3]], [0, 0])
    assert len(store) == 39 and store.nbytes == 39 * 3 * 4 * 6 * 2


def test_an_image_in_a_tar_has_the_features_of_its_file(image_paths: list[Path], tmp_path: Path) -> None:
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(image_paths[5], "deep/05.png")
    with tarfile.open(archive) as tar:
        place = tar.getmember("deep/05.png")
    packed = PackedFile(archive, place.offset_data, place.size, "05.png")
    store = FeatureStore(tmp_path / "cache")
    assert not fill(store, [image_paths[5], packed], encode, TRANSFORM, PLAN)
    found = store.patches([image_paths[5], packed], [2, 2])
    assert torch.equal(found[0], found[1])


def test_too_small_a_disk_is_told_before_it_is_full(image_paths: list[Path], tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "cache")
    with pytest.raises(OpenBlipError, match=r"need 1000000000\.0 GB more, the disk has .* cache=null"):
        store.check_room(10**18)


def test_fingerprint_changes_with_all_that_matters() -> None:
    torch.manual_seed(0)
    encoder = EfficientNet(EfficientNetConfig(64))
    mark = fingerprint(encoder, TRANSFORM, PLAN)
    assert mark == fingerprint(encoder, TRANSFORM, PLAN)
    others = {
        fingerprint(encoder, ImageTransform(64, TRANSFORM.mean, TRANSFORM.std), PLAN),
        fingerprint(encoder, TRANSFORM, ViewPlan(2, 0.5)),
        fingerprint(encoder, TRANSFORM, ViewPlan(3, 0.6)),
        fingerprint(encoder, TRANSFORM, ViewPlan(3, 0.5, mirror=False)),
    }
    # Without crops the views are the same ones; mirror images are only not drawn.
    assert fingerprint(encoder, TRANSFORM, ViewPlan(2, 0.5, mirror=False)) in others
    with torch.no_grad():
        encoder.head.norm.bias[0] += 1e-3
    others.add(fingerprint(encoder, TRANSFORM, PLAN))
    assert mark not in others
    assert len(others) == 5


def test_fingerprint_changes_with_settings_that_no_weight_tells() -> None:
    plain = EfficientNet(EfficientNetConfig(64))
    coded = EfficientNet(EfficientNetConfig(64, place_width=8))
    coded.load_state_dict(plain.state_dict())
    assert fingerprint(plain, TRANSFORM, PLAN) != fingerprint(coded, TRANSFORM, PLAN)
    sizes = VitConfig(image_size=28, patch_size=14, width=16, depth=1, num_heads=2, mlp_width=32)
    vit = VisionTransformer(sizes)
    mark = fingerprint(vit, TRANSFORM, PLAN)
    for change in ({"num_heads": 4}, {"activation": "quick_gelu"}, {"layer_norm_eps": 1e-5}):
        other = VisionTransformer(replace(sizes, **change))
        other.load_state_dict(vit.state_dict())
        assert fingerprint(other, TRANSFORM, PLAN) != mark, change
    # What only training draws changes no feature.
    other = VisionTransformer(replace(sizes, drop_path=0.5))
    other.load_state_dict(vit.state_dict())
    assert fingerprint(other, TRANSFORM, PLAN) == mark


@pytest.mark.parametrize(
    ("worst", "sentence"),
    [(1e5, r"reach 1e\+05.*float16.*cache=null"), (float("nan"), "no numbers"), (float("inf"), "reach inf")],
)
def test_features_that_float16_cannot_keep_are_refused(
    image_paths: list[Path], tmp_path: Path, worst: float, sentence: str
) -> None:
    def encode_one_badly(pixels: Tensor) -> Tensor:
        found = encode(pixels)
        found[-1, -1, -1] = worst
        return found

    store = FeatureStore(tmp_path / "store")
    with pytest.raises(OpenBlipError, match=rf"01\.png.*{sentence}|{sentence}.*01\.png"):
        fill(store, image_paths[:2], encode_one_badly, TRANSFORM, PLAN, batch_size=2)
    assert not list((tmp_path / "store").glob("*.npy"))


def test_crops_are_repeatable_and_large_enough() -> None:
    image = Image.fromarray(np.arange(120 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 120, 3))
    for view in range(2, 12):
        crop = make_view(image, "a.jpg", view, 0.5)
        assert crop.tobytes() == make_view(image, "a.jpg", view, 0.5).tobytes()
        assert crop.width * crop.height >= 0.35 * 120 * 90  # clipped at the border, never tiny
    assert make_view(image, "a.jpg", 2, 0.5).tobytes() != make_view(image, "b.jpg", 2, 0.5).tobytes()
    assert make_view(image, "a.jpg", 0, 0.5) is image
    assert make_view(make_view(image, "a.jpg", 1, 0.5), "a.jpg", 1, 0.5).tobytes() == image.tobytes()


def test_crops_of_a_plan_without_mirror_images_are_the_same_parts_the_right_way_round() -> None:
    pixels = np.broadcast_to(np.arange(120, dtype=np.uint8)[None, :, None], (90, 120, 3))  # brighter to the right
    image = Image.fromarray(np.ascontiguousarray(pixels))
    rightward = {True: 0, False: 0}
    for view in range(2, 40):
        for mirror in (True, False):
            row = np.asarray(make_view(image, "a.jpg", view, 0.5, mirror))[0, :, 0].astype(int)
            rightward[mirror] += row[-1] > row[0]
        assert sorted(row) == sorted(np.asarray(make_view(image, "a.jpg", view, 0.5))[0, :, 0].astype(int))
    assert rightward[False] == 38
    assert 8 < rightward[True] < 30


FILLING = """
import sys, time
from dataclasses import replace
from pathlib import Path
import torch
from openblip.data import feature_store as features
from openblip.data.feature_store import FeatureStore, fill
from tests.data.test_feature_store import PLAN, TRANSFORM, encode

features.SHARD_BYTES = 900
folder, mark, *photos = map(Path, sys.argv[1:])
store = FeatureStore(folder)
mark.touch()
while len(list(mark.parent.glob("ready*"))) < 2:
    time.sleep(0.001)
bad = fill(store, photos, lambda pixels: encode(pixels), TRANSFORM, PLAN, batch_size=2)
assert not bad and all(photo in store for photo in photos)
assert all(photo in FeatureStore(folder) for photo in photos), "another run has deleted some"
"""


def test_two_runs_fill_one_store_at_once(image_paths: list[Path], tmp_path: Path) -> None:
    """As two commands would: neither loses a row of the other's, and each image is kept once."""
    whole, _ = build(image_paths, tmp_path / "whole")
    folder = tmp_path / "shared"
    # A shard that was cut short, which both find and want to put right.
    build(image_paths[:6], folder)
    (broken,) = folder.glob("*.npy")
    broken.write_bytes(broken.read_bytes()[:-2])
    (folder / "0123456789abcdef.npy.draft").write_bytes(b"left by a kill")
    orders = (image_paths, image_paths[6:] + image_paths[:6])
    running = [
        warm.Process(
            ["-c", FILLING, str(folder), str(tmp_path / f"ready{number}"), *map(str, order)],
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for number, order in enumerate(orders)
    ]
    for process in running:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told
    keys = [key for path in folder.glob("*.json") for key in json.loads(path.read_text())]
    assert len(keys) == len(set(keys)) == len(image_paths)
    assert not list(folder.glob("*.draft"))
    views = [number % 3 for number in range(40)]
    assert torch.equal(FeatureStore(folder).patches(image_paths, views), whole.patches(image_paths, views))


def test_a_shard_that_is_being_replaced_is_not_deleted(
    image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was broken when it was looked at may be whole by the time that it could be deleted."""
    store, _ = build(image_paths[:6], tmp_path / "cache")
    (path,) = store.folder.glob("*.npy")
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    alone = FeatureStore._alone

    def replaced_first(self: FeatureStore) -> Any:
        path.write_bytes(good)
        return alone(self)

    monkeypatch.setattr(FeatureStore, "_alone", replaced_first)
    found = FeatureStore(store.folder)
    assert not found.broken and all(image_path in found for image_path in image_paths[:6])


def test_features_of_an_image_never_change(image_paths: list[Path], tmp_path: Path) -> None:
    """What a run has learnt from, it has to find again, whoever computes it a second time."""
    first, _ = build(image_paths, tmp_path / "cache")
    other = FeatureStore(tmp_path / "elsewhere")
    other.folder = first.folder
    fill(other, image_paths[3:9], lambda pixels: encode(pixels) + 1, TRANSFORM, PLAN, batch_size=4)
    views = [0] * 40
    assert torch.equal(FeatureStore(first.folder).patches(image_paths, views), first.patches(image_paths, views))
    assert torch.equal(other.patches(image_paths[3:9], [0] * 6), first.patches(image_paths[3:9], [0] * 6))


def test_a_folder_that_cannot_be_written_is_one_sentence(image_paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OpenBlipError, match=r"features cannot be written to .*file.* with cache=null$"):
        FeatureStore(tmp_path / "file/cache")
