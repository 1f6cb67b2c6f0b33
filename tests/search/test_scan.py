"""Exact search against products in float64, and against LanceDB's index, on vectors of clustered images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.search import scan
from openblip.search.codes import Codes
from openblip.search.index import CODES_FROM, VAIN, _Loaded


def clustered(images: int, vectors: int, width: int = 256, seed: int = 0) -> Tensor:
    """Unit vectors [images, vectors, width], float32: images of a cluster are alike, so are vectors of an image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, images // 20), width, generator=generator)
    own = centres[torch.randint(len(centres), (images,), generator=generator)]
    own = own + 0.5 * torch.randn(images, width, generator=generator)
    found = own[:, None] + 0.7 * torch.randn(images, vectors, width, generator=generator)
    return F.normalize(found, dim=-1)


def queries_for(vectors: Tensor, count: int, seed: int = 1) -> Tensor:
    """Unit vectors [count, width], each near one image as a text is."""
    generator = torch.Generator().manual_seed(seed)
    near = vectors[torch.randint(len(vectors), (count,), generator=generator), 0]
    noise = F.normalize(torch.randn(count, vectors.shape[-1], generator=generator), dim=-1)
    return F.normalize(near + 1.5 * noise, dim=-1)


def exact(vectors: Tensor, query: Tensor) -> Tensor:
    return (vectors.double() @ query.double().T).amax(dim=1).mean(dim=-1)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(("count", "kept"), [(32, 32), (16, 1), (1, 1)])
def test_the_best_are_those_of_float64(half: bool, count: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text's vector, or several of an image; also with the products in half precision where these are slow."""
    monkeypatch.setattr(scan, "half_is_fast", lambda: half)
    vectors = clustered(900, count)
    halves = vectors.half()
    blocks = [halves[:1], halves[1:400], halves[400:]]
    for query in queries_for(vectors, 5 * kept).view(5, kept, -1):
        wanted = exact(halves, query)
        found = scan.best(blocks, query, 25)
        assert [place for place, _ in found] == wanted.argsort(descending=True)[:25].tolist()
        assert torch.allclose(torch.tensor([score for _, score in found]), wanted[[p for p, _ in found]].float())


def codes_of(blocks: list[Tensor], share: float) -> Codes:
    try:
        return Codes(blocks, share)
    except (AttributeError, RuntimeError):
        pytest.skip("this PyTorch has no products of 8-bit numbers by FBGEMM")


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize(("count", "kept", "others"), [(32, 1, 0), (32, 4, 0), (8, 1, 2), (1, 1, 1)])
def test_codes_change_nothing_and_their_bounds_hold(
    count: int, kept: int, others: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several parts of several blocks; also of vectors with one number alone, and not of length 1."""
    monkeypatch.setattr("openblip.search.codes.TOGETHER", 999)
    monkeypatch.setattr("openblip.search.codes.READ_TOGETHER", 1999)
    vectors = clustered(900, count)
    vectors[5, 0] = F.one_hot(torch.tensor(3), 256)
    vectors[6] = 0
    vectors[7] *= 3
    vectors[8] = vectors[9, 0]
    halves = vectors.half()
    blocks = [halves[:1], halves[1:1], halves[1:400], halves[400:]]
    codes = codes_of(blocks, share)
    left = []
    for mixed in queries_for(vectors, 3 * (kept + others)).view(3, kept + others, -1):
        query, unwanted = mixed[:kept], list(mixed[kept:, None])
        wanted = exact(halves, query)
        if unwanted:
            wanted = wanted - torch.stack([exact(halves, other) for other in unwanted]).amax(dim=0)
        scores, errors = codes.bounds(query, unwanted)
        assert ((scores - wanted).abs() <= errors).all()
        assert errors.median() < (0.03 if share == 1 or count == 1 else 0.5 * (1 + len(unwanted)))
        found = scan.best(blocks, query, 25, unwanted, codes)
        assert found == scan.best(blocks, query, 25, unwanted)
        assert [place for place, _ in found] == wanted.argsort(descending=True)[:25].tolist()
        left.append(codes.left)
    assert 25 / 900 <= min(left) <= max(left) <= 1
    assert max(left) < (0.1 if share == 1 or count == 1 else 1.01)


def test_a_few_directions_tell_images_apart_whose_vectors_differ_in_these() -> None:
    """Where they do not, codes of everything are made instead, and change nothing."""
    generator = torch.Generator().manual_seed(4)
    directions = torch.linalg.qr(torch.randn(256, 256, generator=generator))[0][:20]
    means = F.normalize(torch.randn(600, 1, 256, generator=generator), dim=-1)
    flat = F.normalize(means + 0.2 * torch.randn(600, 16, 20, generator=generator) @ directions, dim=-1).half()
    round_ = F.normalize(torch.randn(600, 16, 256, generator=generator), dim=-1).half()
    for vectors, spared in ((flat, True), (round_, False)):
        loaded = _Loaded(1, [], [vectors])
        loaded.codes = codes_of([vectors], 0.25)
        shares = []
        for query in queries_for(vectors.float(), VAIN + 1)[:, None]:
            codes = loaded.codes_if_worth()
            assert codes is not None
            assert scan.best([vectors], query, 5, codes=codes) == scan.best([vectors], query, 5)
            shares.append(codes.share)
        assert shares == [0.25] * VAIN + [0.25 if spared or not scan.codes_are_fast() else 1]


def test_what_is_unwanted_is_subtracted() -> None:
    vectors = clustered(300, 8).half()
    query, *others = queries_for(vectors.float(), 3)[:, None]
    wanted = exact(vectors, query) - torch.stack([exact(vectors, other) for other in others]).amax(dim=0)
    found = scan.best([vectors], query, 9, others)
    assert [place for place, _ in found] == wanted.argsort(descending=True)[:9].tolist()


def test_equals_keep_their_order_and_half_precision_costs_no_recall() -> None:
    vectors = clustered(1000, 32)
    same = vectors[:1].half().expand(7, -1, -1).contiguous()
    assert [place for place, _ in scan.best([same], vectors[0, :1], 3)] == [0, 1, 2]
    assert scan.best([], vectors[0, :1], 3) == []
    hits = 0
    for query in queries_for(vectors, 40)[:, None]:
        wanted = set(exact(vectors, query).topk(10).indices.tolist())
        hits += len(wanted & {place for place, _ in scan.best([vectors.half()], query, 10)})
    assert hits >= 0.99 * 400


def test_no_pair_of_near_duplicates_is_missed() -> None:
    vectors = clustered(500, 8)
    generator = torch.Generator().manual_seed(3)
    for place, noise in ((3, 0.005), (90, 0.01), (91, 0.015), (300, 0.02), (499, 0.025)):
        vectors[place] = F.normalize(vectors[7] + noise * torch.randn(8, 256, generator=generator), dim=-1)
    halves = vectors.half()
    cosines = torch.einsum("nqd,mqd->nm", halves.float(), halves.float()) / 8
    wanted = [(i, j) for i, j in (cosines >= 0.9).nonzero().tolist() if i < j]
    assert 10 <= len(wanted) < 500
    found = list(scan.alike([halves[:200], halves[200:]], 0.9))
    assert sorted((i, j) for i, j, _ in found) == wanted
    assert all(abs(cosine - cosines[i, j]) < 1e-5 for i, j, cosine in found)


@pytest.mark.parametrize("fast", [True, False])
def test_codes_are_made_where_they_are_fast(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "codes_are_fast", lambda: fast)
    blocks = [torch.nn.functional.normalize(torch.randn(4, 2, 256), dim=-1).half()]
    loaded = _Loaded(1, [], blocks)
    found = [loaded.codes_if_worth() is not None for _ in range(CODES_FROM + 1)]
    assert found == [False] * (CODES_FROM - 1) + [fast] * 2
