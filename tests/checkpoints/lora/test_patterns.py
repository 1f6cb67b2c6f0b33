"""Settings that differ between layers: as peft reads them, in bounded time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.checkpoints.lora import patterns
from openblip.checkpoints.lora.patterns import LayerPatterns

pytest.importorskip("peft")
from peft.utils.other import get_pattern_key

LAYERS = [
    *(f"language_model.model.decoder.layers.{n}.self_attn.{part}_proj" for n in (0, 1, 10, 11) for part in "qkv"),
    *(f"qformer.encoder.layer.{n}.attention.attention.query" for n in (0, 1, 10)),
    *("vision_model.encoder.layers.3.self_attn.qkv", "language_projection", "model.fc1", "fc1", "xfc1"),
]
WRITTEN = [
    *("q_proj", "self_attn.q_proj", r"self_attn\.q_proj", "layers.1.self_attn.q_proj", "fc1", "^fc1", "fc1$"),
    *("^model.fc1$", r".*(q_proj|v_proj)", r".*\.(q_proj|v_proj)$", r"(q|k)_proj", r"(?:q|k|v)_proj", r"[qk]_proj"),
    *(r"[^q]_proj", r"layers\.[0-9]+\.self_attn\.q_proj", r".*layers\.(0|1|2|3)\..*", r"layers\.\d+\..*_proj"),
    *(r"layers\.1[0-9]?\..+", r"^language_model.*", r"\w+_proj", r".*attention.*", "language_projection"),
    r"^language_model\.model\.decoder\.layers\.\d{1,2}\.self_attn\.(q|k|v)_proj$",
    *(r".*decoder.*(q|v).*", "layer.{1,3}self", r"(?P<n>q|k)_proj", "a|b|fc1|c", "()", "", "x?fc1", "(x|y)*fc1"),
    *(r"[\w.]+", "(((q)))_proj", r"layers\.(?:[0-9]|1[0-5])\.self_attn\.k_proj", "a{2,3}"),
]


@pytest.mark.parametrize("pattern", WRITTEN)
def test_what_people_write_means_what_peft_takes_it_for(pattern: str) -> None:
    ours = LayerPatterns("rank_pattern", {pattern: True})
    for layer in LAYERS:
        theirs = re.match(rf"(.*\.)?({pattern})$", layer) is not None
        assert ours.value(layer, False) is theirs, layer


PIECES = st.sampled_from([*"abc.", r"\.", "[ab]", "[^a]", r"\w", r"\d", "0"])
EXPRESSIONS = st.recursive(
    PIECES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}", "{,2}", "*?", "+?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=8,
)


@given(st.lists(EXPRESSIONS, min_size=1, max_size=4, unique=True), st.text("abc.0", max_size=9))
@settings(max_examples=150, deadline=None)
def test_any_expression_means_what_peft_takes_it_for(written: list[str], layer: str) -> None:
    ours = LayerPatterns("rank_pattern", {pattern: pattern for pattern in written})
    # A plain name means itself alone here; there its dots mean any character.
    plain = [pattern for pattern in written if re.fullmatch(r"[abc.0]*\.[abc.0]*", pattern)]
    if not plain and layer not in written:
        assert ours.value(layer, layer) == get_pattern_key(written, layer)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(.*)*x", "(a*)*(a*)*(a*)*b", "(a|aa)+$b", "((a{1,40}){1,40})b", "(.*a){25}b"]
)
def test_no_expression_takes_exponential_time(pattern: str) -> None:
    ours = LayerPatterns("rank_pattern", {pattern: 1})
    assert ours.value("a" * 300, 0) == 0


@pytest.mark.parametrize(
    "written",
    [
        *({pattern: 1} for pattern in ("(?=a)b", "(?!a)b", "(?<=a)b", r"(a)\1", r"\bq", "(?i)q", "(", ")", "[", "*a")),
        *(
            {pattern: 1}
            for pattern in ("a{99}{99}{99}", "((a{99}){99}){99}", "(" * 500, "a" * 2000 + "*", "a\\", "a**")
        ),
        *(["a"], "a", 7),
    ],
)
def test_other_expressions_are_refused_in_one_sentence(written: object) -> None:
    with pytest.raises(ValueError, match=r"^rank_pattern (has|is) ") as raised:
        LayerPatterns("rank_pattern", written)
    assert len(str(raised.value)) < 300


def test_many_expressions_take_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_WORK", patterns.MAX_WORK // 10)  # a tenth of what a user waits for
    ours = LayerPatterns("rank_pattern", {f".*.*.*{number}x": 1 for number in range(5_000)})
    with pytest.raises(ValueError, match="takes too long to compare"):
        [ours.value(f"layers.{number}.self_attn.q_proj", 0) for number in range(1000)]
    names = {f"layers\\.{number}\\.q": number for number in range(50_000)}
    assert LayerPatterns("rank_pattern", names).value("model.layers.40000.q", 0) == 40_000
