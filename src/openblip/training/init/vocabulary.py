"""Tokenizers of new small models: byte-level BPE for the decoder, a reduced WordPiece for the Q-Former."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

DECODER_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""In the order of OPT's vocabulary, so that pad is 1 and the start token 2."""

QFORMER_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")


def train_decoder_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE like that of OPT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(DECODER_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A reduced WordPiece tokenizer, and for each of its ids the id in the original vocabulary (-1 for new tokens)."""

    tokenizer: Tokenizer
    kept: tuple[int, ...]


def trim_wordpiece(vocabulary: list[str], texts: Iterable[str], vocab_size: int) -> TrimmedVocabulary:
    """Keep the most frequent tokens of `texts`, and all single characters, so that every word can be encoded."""
    full = _wordpiece({piece: index for index, piece in enumerate(vocabulary)})
    counts: Counter[int] = Counter()
    for encoding in full.encode_batch_fast(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    pieces = dict.fromkeys(QFORMER_SPECIALS)
    letters = [piece for piece in vocabulary if len(piece.removeprefix("##")) == 1 and piece.isascii()]
    pieces.update(dict.fromkeys(letters))
    for index, _ in counts.most_common():
        if len(pieces) >= vocab_size:
            break
        pieces.setdefault(vocabulary[index])
    kept = list(pieces)
    trimmed = _wordpiece({piece: index for index, piece in enumerate(kept)})
    return TrimmedVocabulary(trimmed, tuple(ids.get(piece, -1) for piece in kept))


def _wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([name for name in QFORMER_SPECIALS if name in vocabulary])
    return tokenizer
