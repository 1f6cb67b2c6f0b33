"""The lines of the parity table about BLIP and CLIP, one an architecture and reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from torch import Tensor

from tests.nn import test_blip_recorded, test_clip_recorded
from tests.pairs import official
from tests.pairs.blip import load
from tests.pairs.clip import load_recording
from tests.pairs.gaps import difference
from tests.parity.table import LIMIT, Check, Gap, worst
from tests.training import test_momentum_recorded

SIZES = "two layers at official sizes"
BLIP_RECORDED, CLIP_RECORDED = "nn/test_blip_recorded.py", "nn/test_clip_recorded.py"
MOMENTUM_RECORDED = "training/test_momentum_recorded.py"
RECORDED = "LAVIS' recordings"


def gaps_of(measure: Callable[[], Iterable[official.Measured]]) -> list[Gap]:
    return [Gap(one.name, one.value, LIMIT if one.count is None else 0, one.count) for one in measure()]


def watched(module: ModuleType, tests: Sequence[Callable[[], None]]) -> list[Gap]:
    """The largest differences that tests of recordings compare, by their limits, instead of what they say of them.

    Args:
        module: of the tests, which compare tensors by its `close`. CLOSE is its limit, and GRADIENT that of gradients
            where it is another.
        tests: what they compare exactly, such as ids, is counted test by test.
    """
    seen: dict[float, list[float]] = {}
    apart = getattr(module, "GRADIENT", None)
    names = {module.CLOSE: "outputs and gradients" if apart is None else "outputs", apart: "gradients"}

    def note(ours: Tensor, theirs: Tensor, tolerance: float = module.CLOSE) -> None:
        assert ours.shape == theirs.shape
        seen.setdefault(tolerance, []).append(difference(ours, theirs))

    failed = 0
    with patch.object(module, "close", note):
        for test in tests:
            try:
                test()
            except AssertionError:
                failed += 1
    found = [
        Gap(names.get(limit, "maps"), worst(values), limit) for limit, values in sorted(seen.items(), reverse=True)
    ]
    return [*found, Gap("exact checks", failed, 0, len(tests))]


def official_checks() -> list[Check]:
    """Against transformers, and for CLIP's ResNet against open_clip, where it is installed, and plain PyTorch."""
    checks = [
        Check(f"{name}, {SIZES}", f"transformers {kind.__name__}", partial(gaps_of, partial(official.blip_gaps, name)),
              "nn/test_official_sizes.py")
        for name, kind in official.BLIPS.items()
    ]  # fmt: skip
    checks += [
        Check(f"clip/{size}, {SIZES}", "transformers CLIPModel", partial(gaps_of, partial(official.clip_gaps, size)),
              "nn/test_official_sizes.py")
        for size in official.CLIPS
    ]  # fmt: skip
    both = "open_clip, plain PyTorch" if importlib.util.find_spec("open_clip") else "plain PyTorch"
    return [
        *checks,
        Check(
            "clip/RN50, all of its ResNet", both, partial(gaps_of, official.resnet_gaps), "nn/test_official_sizes.py"
        ),
    ]


def recorded_checks(folder: Path) -> list[Check]:
    """Against what LAVIS' own code computed, in a folder of recordings."""
    nn, clip, momentum = test_blip_recorded, test_clip_recorded, test_momentum_recorded

    def vqa() -> tuple[test_blip_recorded.Recording, test_blip_recorded.BlipNetwork]:
        recording = load(folder, "blip_vqa")
        text = recording.bert()
        decoder = recording.bert(image_width=text.width)
        return recording, recording.network(encoder=text, decoder=decoder, answers=True)

    def answers() -> list[Gap]:
        pair = vqa()
        tests = (nn.test_answers, nn.test_generated_answers, nn.test_answers_in_a_batch_are_those_alone)
        return watched(nn, [partial(test, pair) for test in (*tests, nn.test_ranked_answers)])

    def pairs(task: str) -> list[Gap]:
        tests: list[Callable[[], None]] = []
        if task == "retrieval":
            tests = [partial(momentum.test_steps_of_adamw, folder)]
            tests.append(partial(momentum.test_momentum_embeddings_come_after_the_copies_have_moved, folder))
        with pytest.MonkeyPatch.context() as change:
            of_task = (momentum.test_one_step, momentum.test_targets_and_weights_of_negatives)
            return watched(momentum, [*(partial(test, folder, task, change) for test in of_task), *tests])

    def of_clip(name: str) -> list[Gap]:
        recording = load_recording(folder / f"{name}.pth")
        tests = (clip.test_features_scores_and_classes, clip.test_every_block, clip.test_loss_and_gradients)
        more = [partial(clip.test_exact_gelu, folder)] if name == "clip_vit" else []
        return watched(clip, [*(partial(test, recording) for test in tests), *more])

    def of_nn(*tests: Callable[[], None]) -> Callable[[], list[Gap]]:
        return lambda: watched(nn, tests)

    rows: list[tuple[str, Callable[[], Sequence[Gap]], str]] = [
        *(
            (f"blip_caption {kind}", of_nn(partial(nn.test_captions, folder, kind)), BLIP_RECORDED)
            for kind in ("base", "large")
        ),
        ("blip_vqa: losses, generated and ranked answers", answers, BLIP_RECORDED),
        *(
            (f"blip_image_text_matching {kind}", of_nn(partial(nn.test_matching, folder, kind)), BLIP_RECORDED)
            for kind in ("base", "large")
        ),
        ("Grad-CAM of blip_image_text_matching", of_nn(partial(nn.test_attention_maps, folder)), BLIP_RECORDED),
        ("blip_feature_extractor", of_nn(partial(nn.test_features, folder)), BLIP_RECORDED),
        ("blip_retrieval: search", of_nn(partial(nn.test_retrieval_evaluation, folder)), BLIP_RECORDED),
        ("blip_retrieval: losses, queues, momentum, AdamW", partial(pairs, "retrieval"), MOMENTUM_RECORDED),
        ("blip_pretrain: losses, queues, momentum", partial(pairs, "pretrain"), MOMENTUM_RECORDED),
        ("blip_nlvr", of_nn(partial(nn.test_nlvr, folder)), BLIP_RECORDED),
        ("blip_classification", of_nn(partial(nn.test_classification, folder)), BLIP_RECORDED),
        ("clip, ViT", partial(of_clip, "clip_vit"), CLIP_RECORDED),
        ("clip, RN50's kind", partial(of_clip, "clip_rn"), CLIP_RECORDED),
    ]
    return [Check(component, RECORDED, measure, test) for component, measure, test in rows]
