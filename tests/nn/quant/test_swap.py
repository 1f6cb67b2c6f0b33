"""Quantized layers against the same layers in float64, over shapes that hypothesis picks."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.nn import threads
from openblip.nn.quant import int4, int4_wide, int8, int8_packing
from openblip.nn.quant.int4 import (
    GROUP,
    INNER_TILES,
    OUTPUTS,
    Int4Linear,
    dequantize_groups,
    pack,
    packed_block,
    quantize_groups,
    whole_codes,
)
from openblip.nn.quant.int4_wide import Int4WideLinear, dequantize_wide, quantize_wide, wide_codes
from openblip.nn.quant.int8 import (
    PACK_AFTER,
    Int8Linear,
    Int8WordTable,
    float_product,
    gpu_multiplies,
    gpu_product,
    plain_product,
    quantize_weight,
)
from openblip.nn.quant.int8_packing import LEVELS, ForFewRows, ForManyRows, Ordered, Rows, input_levels
from openblip.nn.quant.linear import Linear, WordTable, linear
from openblip.nn.quant.swap import prepare_layers, quantize, quantized_layers
from openblip.nn.t5 import T5, T5Config

ROUNDING = 1e-5
CPUS = (LEVELS, LEVELS // 2, None)
"""Levels of inputs: of a CPU with VNNI, of one without, and of one that multiplies no whole numbers."""
shapes = st.tuples(st.integers(1, 40), st.integers(2, 300), st.integers(1, 150))


class _Exact:
    """In the place of a packed order that this CPU multiplies with fewer levels."""

    def __init__(self, codes: Tensor, scale: Tensor, quickly: bool = False) -> None:
        self._codes, self._scale, self.nbytes = codes.clone(), scale.clone(), codes.numel()

    def product(self, rows: Rows) -> Tensor:
        return exact_int_mm(rows.signed(), self._codes.t()).float() * self._scale

    def codes(self) -> Tensor:
        return self._codes


class _ExactForFewRows(_Exact, ForFewRows):
    pass


class _ExactForManyRows(_Exact, ForManyRows):
    pass


def exact_int_mm(whole: Tensor, codes: Tensor) -> Tensor:
    return (whole.double() @ codes.double()).to(torch.int32)


@contextmanager
def cpu_with(levels: int | None) -> Iterator[None]:
    """A CPU whose products are exact with so many levels of inputs, whatever this one is."""
    own = input_levels()
    with pytest.MonkeyPatch.context() as patch:
        for module in (int8, int4_wide, int8_packing):
            patch.setattr(module, "input_levels", lambda: levels)
        patch.setattr(int8_packing, "many_rows_have_an_order", lambda: levels == LEVELS)
        if levels is not None and (own is None or own < levels):
            patch.setattr(torch, "_int_mm", exact_int_mm)
            patch.setattr(int8_packing, "orders", lambda: (_ExactForFewRows, _ExactForManyRows))
        yield


def drawn(rows: int, inputs: int, outputs: int, seed: int, bias: bool = True) -> tuple[Tensor, nn.Linear]:
    """Inputs and a layer; rows and columns differ a thousandfold in size."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=random) * 10 ** torch.randn(rows, 1, generator=random)
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=random) * 10 ** torch.randn(outputs, 1))
        if bias:
            layer.bias.copy_(torch.randn(outputs, generator=random))
    return x, layer


def int8_of(layer: nn.Linear) -> Int8Linear:
    made = Int8Linear(layer.in_features, layer.out_features, layer.bias is not None)
    made.take(layer.weight.detach())
    made.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
    return made


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.double() @ weight.detach().double().T
    return y if bias is None else y + bias.detach().double()


@pytest.mark.parametrize("levels", CPUS)
@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**20), bias=st.booleans(), packed=st.booleans())
def test_int8_errs_by_no_more_than_rounding_inputs_and_weights(
    levels: int | None, shape: tuple[int, int, int], seed: int, bias: bool, packed: bool
) -> None:
    x, layer = drawn(*shape, seed, bias)
    made = int8_of(layer)
    with cpu_with(levels), torch.inference_mode():
        if packed:
            made.pack()
        found = made(x)
    weight = layer.weight.detach().double()
    # Where whole numbers are not multiplied, inputs are not rounded.
    step = torch.zeros(len(x), 1) if levels is None else x.abs().amax(1, keepdim=True).double() / levels
    scale = weight.abs().amax(1) / LEVELS
    # Half a step for each input times its weight as it is kept, half a scale for each weight times its input.
    kept = made.codes().double().abs().sum(1) * scale
    bound = step / 2 * kept + x.double().abs().sum(1, keepdim=True) * scale / 2
    reference = exact(x, layer.weight, layer.bias)
    room = ROUNDING * (x.double().abs() @ weight.abs().T + (0 if layer.bias is None else layer.bias.detach().abs()))
    assert ((found.double() - reference).abs() <= bound * (1 + 1e-4) + room).all()


@pytest.mark.parametrize("levels", CPUS[:2])
@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**20), few_rows=st.booleans())
def test_int8_is_the_same_packed_or_not_together_or_alone(
    levels: int, shape: tuple[int, int, int], seed: int, few_rows: bool
) -> None:
    x, layer = drawn(*shape, seed)
    made = int8_of(layer)
    before = made.codes().clone()
    with cpu_with(levels), torch.inference_mode():
        plain = made(x)
        made.pack(few_rows)
        packed = made(x)
        alone = torch.cat([made(row[None]) for row in x])
    assert torch.equal(plain, packed)
    assert torch.equal(packed, alone)
    assert torch.equal(made.codes(), before)
    assert torch.equal(made.state_dict()["weight"], before)


@pytest.mark.parametrize(("rows", "uses", "order"), [(1, 150, ForFewRows), (5, 30, ForFewRows), (300, 9, ForManyRows)])
def test_int8_packs_itself_for_what_it_multiplies_once_it_was_used_enough(
    rows: int, uses: int, order: type[Ordered]
) -> None:
    x, layer = drawn(rows, 64, 32, 0)
    made = int8_of(layer)
    with cpu_with(LEVELS), torch.inference_mode():
        first = made(x)
        for _ in range(uses):
            made(x)
        assert made.packed is None
        for _ in range(uses):
            last = made(x)
    assert isinstance(made.packed, order)
    assert made.weight.numel() == 0
    assert torch.equal(first, last)


@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**20), piece=st.integers(1, 3000))
def test_packed_in_pieces_or_whole(shape: tuple[int, int, int], seed: int, piece: int) -> None:
    rows, inputs, outputs = shape
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-LEVELS, LEVELS + 1, (outputs, inputs), generator=random, dtype=torch.int8)
    whole = Rows(torch.randint(-LEVELS // 2, LEVELS // 2 + 1, (rows, inputs), generator=random).float(), LEVELS // 2)
    scale = torch.rand(outputs, generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_packing, "PIECE", piece)
        packed = ForFewRows(codes, scale, quickly=True)
    assert torch.equal(packed.codes(), codes)
    assert torch.equal(packed.product(whole), ForFewRows(codes, scale).product(whole))


@pytest.mark.parametrize("quickly", [True, False])
def test_huge_pages_are_for_weights_that_are_used_often(quickly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(int8_packing.GATHERER, "add", told.append)
    packed = ForFewRows(torch.ones(32, 64, dtype=torch.int8), torch.ones(32), quickly)
    assert len(told) == (not quickly)
    for _ in range(2 * int8_packing.GATHER_AFTER):
        packed.product(Rows(torch.ones(1, 64), LEVELS // 2))
    assert told == [32 * 64]


def test_a_process_keeps_its_own_setting_for_quantized_layers() -> None:
    engine = torch.backends.quantized.engine
    made = int8_of(drawn(1, 64, 32, 0)[1])
    with warnings.catch_warnings(record=True) as told:
        made.pack(few_rows=True)
    assert torch.backends.quantized.engine == engine
    assert not told


def test_threads_pack_a_layer_once_and_all_get_the_same() -> None:
    x, layer = drawn(5, 96, 64, 1)
    with torch.inference_mode():
        expected = int8_of(layer)(x)
    for _ in range(20):
        made = int8_of(layer)
        made.losses.by_few = PACK_AFTER

        def run(made: Int8Linear = made) -> Tensor:
            with torch.inference_mode():
                return made(x)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, run=run: run(), range(8)))  # type: ignore[misc]
        assert made.packed is not None
        assert all(torch.equal(one, expected) for one in found)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_packed_layer_can_be_copied(duplicate: Callable[[Int8Linear], Int8Linear]) -> None:
    x, layer = drawn(5, 96, 64, 2)
    made = int8_of(layer)
    made.pack()
    again = duplicate(made)
    with torch.inference_mode():
        assert torch.equal(again(x), made(x))
    assert made.packed is not None


@pytest.mark.parametrize("rows", [1, 33, 257])
def test_without_vnni_a_layer_is_packed_at_once_and_for_any_number_of_rows_alike(rows: int) -> None:
    x, layer = drawn(rows, 130, 40, 4)
    made = int8_of(layer)
    with cpu_with(LEVELS // 2), torch.inference_mode():
        made(x)
        assert isinstance(made.packed, ForFewRows)


@pytest.mark.parametrize(("rows", "order"), [(1, ForFewRows), (33, ForFewRows), (257, ForManyRows)])
def test_vnni_that_only_one_library_knows(rows: int, order: type[Ordered]) -> None:
    """As on CPUs with VNNI in AVX2, of which FBGEMM takes no notice: a prompt does not decide for an image's order."""
    x, layer = drawn(rows, 130, 40, 4)
    made = int8_of(layer)
    with cpu_with(LEVELS // 2), pytest.MonkeyPatch.context() as monkeypatch, torch.inference_mode():
        monkeypatch.setattr(int8_packing, "many_rows_have_an_order", lambda: True)
        made(x)
        assert isinstance(made.packed, order)


def test_the_product_is_exact_for_the_largest_numbers() -> None:
    levels = input_levels()
    assert levels in (LEVELS, LEVELS // 2), "this CPU has no exact product of 8 bits"
    made = Int8Linear(1000, 32, bias=False)
    made.put(torch.full((32, 1000), -LEVELS, dtype=torch.int8), torch.ones(32))
    x = torch.full((3, 1000), float(levels))
    for few_rows in (None, False, True):
        made.unpack()
        if few_rows is not None:
            made.pack(few_rows)
        with torch.inference_mode():
            assert (made(x) == -LEVELS * levels * 1000).all()
            assert (made(-x) == LEVELS * levels * 1000).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@torch.inference_mode()
def test_devices_without_whole_numbers_multiply_floats(dtype: torch.dtype) -> None:
    """Sums of whole numbers that are far beyond float16's range belong to results that are within it."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(24, 4096, generator=generator) * 0.02
    rows = torch.rand(3, 4096, generator=generator).mul_(20).to(dtype)
    layer, table = Int8Linear(4096, 24, bias=False), Int8WordTable(24, 4096)
    layer.take(weight)
    table.take(weight)
    expected = rows.double() @ (layer.codes().double() * layer.scale.double()[:, None]).t()
    assert expected.max() > 300 and (rows.double() @ layer.codes().double().t()).min() > 10 * 65504
    for found in (layer.dequantized(rows), float_product(rows, table.weight, table.scale)):
        assert found.dtype == dtype
        assert ((found.double() - expected).abs() <= 16 * torch.finfo(dtype).eps * expected.abs()).all()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 80), inputs=st.integers(1, 20), outputs=st.integers(1, 20), seed=st.integers(0, 2**20))
def test_the_shapes_a_gpu_takes_give_the_same_product(rows: int, inputs: int, outputs: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    whole = Rows(torch.randn(rows, 8 * inputs, generator=random))
    codes = torch.randint(-LEVELS, LEVELS + 1, (8 * outputs, 8 * inputs), generator=random, dtype=torch.int8)
    scale = torch.rand(8 * outputs, generator=random)
    assert torch.equal(gpu_product(whole, codes, scale), plain_product(whole, codes, scale))


def test_the_way_of_a_gpu_through_a_layer_and_a_table() -> None:
    """With the CPU in the GPU's place: a machine with one runs the same lines."""
    x, layer = drawn(3, 64, 32, 5)
    made, table = int8_of(layer), Int8WordTable(32, 64)
    table.take(layer.weight.detach())
    calls: list[int] = []
    # What is replaced within comes back first: the other way round it would stay for the tests behind this one.
    with cpu_with(LEVELS), pytest.MonkeyPatch.context() as monkeypatch, torch.inference_mode():
        expected = made(x), table.scores(x)
        assert gpu_multiplies.__wrapped__(torch.device("cpu"))
        monkeypatch.setattr(int8, "input_levels", lambda: None)
        monkeypatch.setattr(int8, "multiplies_on_gpu", lambda x, outputs: calls.append(outputs) or True)  # type: ignore[func-returns-value]
        found = made(x), table.scores(x)
        # Weights that a CPU without VNNI has packed before are the same.
        made.pack(few_rows=True)
        again = made(x)
    assert calls == [32, 32, 32]
    assert all(torch.equal(one, other) for one, other in zip((*found, again), (*expected, expected[0]), strict=True))


def test_weights_are_brought_to_floating_point_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = drawn(70, 64, 32, 6)
    made, calls, product = int8_of(layer), [], int8.float_product
    monkeypatch.setattr(threads, "CACHED_ELEMENTS", 64)
    monkeypatch.setattr(int8, "float_product", lambda rows, *rest: calls.append(len(rows)) or product(rows, *rest))
    with cpu_with(None), torch.inference_mode():
        made(x)
    assert calls == [70]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear, Int4WideLinear])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_gpu_says_what_the_cpu_says(kind: type[Int8Linear | Int4Linear | Int4WideLinear], rows: int) -> None:
    torch.manual_seed(rows)
    layer = kind(256, 128)
    layer.take(torch.randn(128, 256))
    nn.init.normal_(layer.bias)
    x = torch.randn(rows, 256)
    expected = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected, rtol=2e-2, atol=2e-2)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 70),
    levels=st.sampled_from([LEVELS, LEVELS // 2]),
    halves=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_inputs_are_the_same_whole_numbers_in_every_type(
    rows: int, inputs: int, levels: int, halves: bool, seed: int
) -> None:
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))
    if halves:  # ties between two whole numbers, and the largest magnitude, on both sides of zero
        x = torch.randint(-2 * levels, 2 * levels + 1, x.shape).float() / 2
        x[:, 0] = levels
    quantized = Rows(x, levels)
    floats = quantized.floats()
    assert floats.abs().amax() == levels
    assert torch.equal(floats, (x.double() / quantized.step.double()).round().float() if halves else floats.round())
    assert torch.equal(quantized.signed(), floats.to(torch.int8))
    assert torch.equal(quantized.unsigned().int(), floats.int() + levels + 1)
    assert ((floats * quantized.step - x).abs() <= quantized.step * (0.5 + 1e-4)).all()


def test_zeros_stay_zeros() -> None:
    rows = Rows(torch.zeros(2, 8))
    assert not rows.signed().any() and rows.step.isfinite().all()
    made = int8_of(nn.Linear(8, 4))
    made.take(torch.zeros(4, 8))
    assert torch.equal(made(torch.ones(1, 8)), made.bias.expand(1, 4) if made.bias is not None else torch.zeros(1, 4))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 5),
    blocks=st.integers(1, 8),
    seed=st.integers(0, 2**20),
    packed=st.booleans(),
)
def test_int4_errs_by_no_more_than_half_a_step_a_weight(
    rows: int, groups: int, blocks: int, seed: int, packed: bool
) -> None:
    x, layer = drawn(rows, groups * GROUP, blocks * OUTPUTS, seed)
    codes, scales = quantize_groups(layer.weight.detach())
    kept = dequantize_groups(codes, scales).double()
    grouped = layer.weight.detach().double().view(len(kept), -1, GROUP)
    step = (grouped.amax(2) - grouped.amin(2)) / 15
    # A scale and a centre of 8 bits miss the ends of their group by up to 2 parts in 256 of the largest weight.
    slack = grouped.abs().amax(2) / 64
    assert ((kept.view_as(grouped) - grouped).abs() <= (step / 2 + slack)[..., None] * 1.01 + 1e-12).all()
    made = Int4Linear(layer.in_features, layer.out_features)
    made.take(layer.weight.detach())
    made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    if packed:
        made.pack()
        assert made.packed
    with torch.inference_mode():
        found = made(x).double()
    reference = exact(x, kept, layer.bias)
    room = x.double().abs() @ kept.abs().T + layer.bias.detach().double().abs()
    assert ((found - reference).abs() <= room / 128).all()  # inputs and results of 8 bits


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 14), groups=st.integers(1, 5), seed=st.integers(0, 2**20))
def test_four_bits_are_packed_as_pytorch_packs_them(rows: int, groups: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(256, (rows * OUTPUTS, groups * GROUP // 2), dtype=torch.uint8, generator=random)
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole_codes(codes), INNER_TILES)
    assert torch.equal(pack(codes), expected)


def test_the_order_of_four_bits_is_known_here() -> None:
    assert packed_block() is not None, "packing works, but takes nine times as long: PyTorch has another order now"


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    pieces=st.integers(1, 4),
    at_a_time=st.integers(1, 3000),
)
def test_quantized_in_pieces_or_by_the_definition(
    rows: int, width: int, seed: int, dtype: torch.dtype, pieces: int, at_a_time: int
) -> None:
    """However a matrix is cut on its way, its codes and scales are those that the definition gives, bit for bit."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width * GROUP, generator=random) * 10 ** torch.randn(rows, 1, generator=random)
    weight[rows // 2] = 0
    weight = weight.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int4, "CHUNK_ELEMENTS", at_a_time)
        patch.setattr(threads, "PART_ELEMENTS", at_a_time)
        patch.setattr(torch, "get_num_threads", lambda: 2)
        codes, scales = quantize_weight(*weight.chunk(pieces))
        groups, centres = quantize_groups(*weight.chunk(pieces))
    values = weight.float()
    expected = (values.abs().amax(1) / LEVELS).clamp(min=1e-30)
    assert torch.equal(scales, expected)
    assert torch.equal(codes, (values / expected[:, None]).round().to(torch.int8))
    values = values.view(rows, width, GROUP)
    low, high = values.amin(2), values.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-30).bfloat16()
    centre = (low + 8 * scale.float()).bfloat16()
    whole = ((values - centre.float()[..., None]) / scale.float()[..., None]).round().add(8).clamp(0, 15)
    assert torch.equal(centres, torch.stack([scale.t(), centre.t()], 2))
    assert torch.equal(whole_codes(groups), whole.flatten(1).int())


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 5),
    outputs=st.integers(1, 70),
    seed=st.integers(0, 2**20),
    pieces=st.integers(1, 3),
    at_a_time=st.sampled_from([1, 700, 10**6]),
)
def test_four_bits_for_many_rows_are_whole_numbers_of_eight(
    rows: int, groups: int, outputs: int, seed: int, pieces: int, at_a_time: int
) -> None:
    x, layer = drawn(rows, groups * GROUP, outputs, seed)
    weight = layer.weight.detach()
    weight[outputs // 2] = 0
    weight[0, :3] = torch.tensor([-5000.0, 5000.0, 0.001])  # a group that spans all there is
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int4_wide, "CHUNK_ELEMENTS", at_a_time)
        codes, scales, steps = quantize_wide(*weight.chunk(pieces))
    kept = dequantize_wide(codes, scales, steps).double()
    # Nothing has wrapped around: int16 gives the same.
    nibbles = torch.cat([codes & 15, codes >> 4]).short().view(groups, GROUP, outputs)
    assert torch.equal(wide_codes(codes, steps), (nibbles * steps[0].short() + steps[1].short()).view(-1, outputs))
    grouped = weight.double().view(outputs, groups, GROUP)
    step = (grouped.amax(2) - grouped.amin(2)) / 15
    unit = grouped.abs().amax((1, 2))[:, None] / LEVELS
    # A step and a base are rounded to whole units, which moves the ends of 15 steps by 8 units at the most.
    error = (kept.view_as(grouped) - grouped).abs()
    assert (error <= (step / 2 + 8 * unit)[..., None] + 1e-12).all()
    assert error.square().mean(2).sqrt().le((step / 12**0.5 * 1.3 + 2 * unit) + 1e-12).all()
    made = Int4WideLinear(layer.in_features, outputs)
    made.take(weight)
    made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    with torch.inference_mode():
        found = made(x).double()
    inputs = x.abs().amax(1, keepdim=True).double() / LEVELS
    bound = inputs / 2 * kept.abs().sum(1) * 1.001
    room = ROUNDING * (x.double().abs() @ kept.abs().T + layer.bias.detach().abs())
    assert ((found - exact(x, kept, layer.bias)).abs() <= bound + room).all()
    # In training, and on other devices, the same weights multiply floats.
    x.requires_grad_()
    learnt = made(x)
    learnt.sum().backward()
    assert ((learnt.detach().double() - exact(x.detach(), kept, layer.bias)).abs() <= room + 1e-12).all()
    assert torch.allclose(x.grad.double(), kept.sum(0).expand_as(x), rtol=1e-4, atol=float(1e-4 * kept.abs().sum()))


@pytest.mark.parametrize("levels", CPUS)
def test_a_word_table_looks_up_and_scores(levels: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(3)
    table = WordTable(500, 96)
    table.weight.data.normal_(generator=random)
    made = Int8WordTable(500, 96)
    made.take(table.weight.detach())
    ids = torch.randint(0, 500, (4, 7), generator=random)
    scale = table.weight.detach().abs().amax(1) / LEVELS
    assert ((made(ids) - table(ids)).abs() <= scale[ids][..., None] * 0.5001).all()
    hidden = torch.randn(2, 3, 96, generator=random)
    # What is read back is what scores: the error left is that of rounding the hidden states.
    vectors = made(torch.arange(500)).double()
    step = hidden.abs().amax(-1, keepdim=True).double() / (levels or LEVELS)
    bound = step / 2 * vectors.abs().sum(1) * 1.001 + 1e-4
    with cpu_with(levels), torch.inference_mode():
        found = made.scores(hidden)
        # Where the table itself has no exact product it is there a second time, and never in a copy or a file.
        assert (made.packed is not None) == (levels == LEVELS // 2)
        assert torch.equal(copy.deepcopy(made).scores(hidden), found)
        assert torch.equal(made.to(torch.float32).scores(hidden), found)
        if levels == LEVELS:  # elsewhere once it is worth it, unless it is large
            monkeypatch.setattr(int8, "TWICE", 0)
            made.losses.by_few = PACK_AFTER
            assert torch.equal(made.scores(hidden), found)
            assert made.packed is None
            monkeypatch.setattr(int8, "TWICE", made.weight.numel())
            assert torch.equal(made.scores(hidden), found)
            assert made.packed is not None
    assert made.state_dict().keys() == {"weight", "scale"}
    assert ((found.double() - hidden.double() @ vectors.T).abs() <= bound).all()
    # New weights are scored with, not those that were packed.
    made.take(-table.weight.detach())
    with cpu_with(levels), torch.inference_mode():
        assert torch.equal(made.scores(hidden), -found)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_refused(number: float) -> None:
    weight = torch.ones(OUTPUTS, GROUP)
    weight[3, 5] = number
    for quantized in (quantize_weight, quantize_groups, quantize_wide):
        with pytest.raises(ValueError, match="infinite or no number"):
            quantized(weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_a_network_leaves_its_scales_alone(dtype: torch.dtype) -> None:
    layers = (Int4Linear(GROUP, OUTPUTS), Int4WideLinear(GROUP, OUTPUTS), Int8WordTable(OUTPUTS, GROUP))
    for made in (int8_of(nn.Linear(GROUP, OUTPUTS)), *layers):
        made.take(torch.randn(OUTPUTS, GROUP))
        before = made.scale.clone()
        made.to(dtype).to(torch.float32)
        assert made.scale.dtype == before.dtype
        assert torch.equal(made.scale, before)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), bias=st.booleans(), seed=st.integers(0, 2**20))
def test_the_fast_product_of_floats_is_the_slow_one(rows: int, bias: bool, seed: int) -> None:
    x, layer = drawn(rows, 640, 800, seed, bias)
    with torch.inference_mode():
        fast = linear(x, layer.weight, layer.bias)
    reference = exact(x, layer.weight, layer.bias)
    room = x.double().abs() @ layer.weight.detach().double().abs().T
    assert ((fast.double() - reference).abs() <= 2e-6 * room + 1e-6).all()
    # Training takes the product that knows gradients.
    own = Linear(640, 800)
    own(x).sum().backward()
    assert own.weight.grad is not None


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_network_is_near_the_one_it_was(tiny_parts: ModelParts, bits: int) -> None:
    network = copy.deepcopy(tiny_parts.network)
    decoder = network.decoder
    embeds = decoder.embed(torch.randint(0, 100, (3, 9), generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        before = decoder(embeds)
    count = sum(p.numel() for p in network.parameters())
    quantize(network, bits)
    layers = quantized_layers(network)
    assert layers
    assert sum(p.numel() for p in network.parameters() if p.is_floating_point()) < count
    prepare_layers(network)
    with torch.inference_mode():
        after = decoder(embeds)
    assert 0 <= (after - before).norm() / before.norm() < (0.05 if bits == 8 else 0.3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bad_weight_is_found_on_any_thread(dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "PART_ELEMENTS", 64)
    for row in (0, 31, 63):
        weight = torch.ones(64, 64, dtype=dtype)
        quantize_weight(weight)
        weight[row, -1] = value
        with pytest.raises(ValueError, match="infinite or no number"):
            quantize_weight(weight)


@torch.inference_mode()
def test_threads_write_what_inference_mode_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "PART_ELEMENTS", 64)
    codes, scales = quantize_weight(torch.full((64, 64), -2.0))
    assert torch.equal(codes, torch.full((64, 64), -LEVELS, dtype=torch.int8))
    assert torch.equal(scales, torch.full((64,), 2 / LEVELS))


@pytest.mark.parametrize("bits", [8, 4])
def test_an_output_head_of_t5s_own_has_8_bits(bits: int) -> None:
    torch.manual_seed(0)
    network = nn.Module()
    network.t5 = T5(T5Config(300, width=64, depth=1, decoder_depth=1, num_heads=2, head_width=32, ffn_width=128))
    hidden = torch.randn(5, 64)
    head = network.t5.head
    assert head is not None
    exact = hidden.double() @ head.weight.detach().double().t()
    quantize(network, bits)
    assert isinstance(network.t5.head, Int8Linear)
    with torch.inference_mode():
        scores = network.t5.logits(hidden)
    assert 0 < (scores - exact).norm() / exact.norm() < 0.03
