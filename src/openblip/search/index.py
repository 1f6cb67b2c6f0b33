"""An index of photos: made and kept up to date from files, searched by a text or a photo."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.errors import ImageError, OptionError, given_path, whole_number
from openblip.images.sources import ImageSource
from openblip.search.files import by_path, find_files
from openblip.search.found import Changes, Found, Status
from openblip.search.identity import check_same, note_of
from openblip.search.store import Entry, Note, Store
from openblip.search.update import Update

if TYPE_CHECKING:
    from torch import Tensor

    from openblip.models.model import Model
    from openblip.search.codes import Codes

LOG = logging.getLogger("openblip")
EXACT_IMAGES = 100_000
"""Up to so many, every search compares the query with all photos; above, with candidates of LanceDB's index."""
CANDIDATES, PROBES = 400, 64
"""Photos that the index proposes for each vector of a query, from so many of its parts."""
CODES_FROM = 8
"""The search of a process for which codes of all vectors are made, which takes as long as some searches."""
VAIN = 3
"""Searches one after the other of which the codes spare nothing, before there are codes of everything."""
TOP, RERANK = 10, 20
UNWANTED = 0.5
"""ITM probability from which a photo shows what is not wanted."""
NEAR = 0.95
"""Mean cosine from which two photos are near-duplicates."""


@dataclass
class _Loaded:
    """All photos of one version of an index, in memory.

    Attributes:
        blocks: vectors of the entries, in their order.
        codes: of the blocks; None as long as there are none.
        searches: how many there were.
        vain: of these, how many one after the other the codes spared nothing.
    """

    version: int
    entries: list[Entry]
    blocks: list[Tensor]
    codes: Codes | None = None
    searches: int = 0
    vain: int = 0

    def codes_if_worth(self) -> Codes | None:
        """A process that searches now and then does without.

        Where a few directions do not tell the images apart, codes of all of them do.
        """
        from openblip.search import scan
        from openblip.search.codes import SHARE, Codes

        self.searches += 1
        if self.codes is not None and self.codes.share < 1:
            self.vain = self.vain + 1 if self.codes.left > scan.WORTH else 0
        share = SHARE if self.searches == CODES_FROM else 1.0 if self.vain == VAIN else None
        if share is not None and scan.codes_are_fast():
            self.codes, self.vain = None, 0  # frees the memory of what is not needed any more
            with suppress(RuntimeError):  # there is no memory for them
                self.codes = Codes(self.blocks, share)
        return self.codes


class Index:
    """Photos as vectors in a folder, with what is needed to search them and to keep them up to date.

    Open one with `Index.open`. Any number of processes may search while one adds.

    Attributes:
        exact_images: up to so many photos, each search compares the query with all of them.
    """

    def __init__(self, store: Store, model: Model | None, loading: dict[str, Any], running: dict[str, Any]) -> None:
        self._store = store
        self._model = model
        self._loading = loading
        self._running = running
        self._checked = False
        self._loaded: _Loaded | None = None
        self.exact_images = EXACT_IMAGES

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        model: Model | str | Path | None = None,
        device: Any = "auto",
        dtype: Any = "auto",
        adapter: str | Path | None = None,
        tokenizer: str | Path | None = None,
    ) -> Index:
        """An index that is there, or a new one, which `add` makes.

        Args:
            folder: of the index.
            model: one that is loaded, or what `openblip.load` takes; by default the one that the index was made with,
                "mini" for a new one. It is loaded when it is first needed.
            device, dtype, adapter, tokenizer: as for `openblip.load`.

        Raises:
            OptionError: the folder holds something else.
            OpenBlipError: the extra "search" is not installed, or the index cannot be read.
        """
        store = Store(given_path("the folder of the index", folder))
        running = {"device": device, "dtype": dtype}
        if model is not None and not isinstance(model, str | Path):
            return cls(store, model, {"name": model.name}, running)
        if model is None and adapter is None and store.note is not None:
            loading = store.note.loading
            return cls(store, None, loading if tokenizer is None else loading | {"tokenizer": str(tokenizer)}, running)
        named = {"name": "mini" if model is None else model, "adapter": adapter, "tokenizer": tokenizer}
        # Relative to another folder, the name would mean another model.
        loading = {key: _lasting(str(value)) for key, value in named.items() if value is not None}
        return cls(store, None, loading, running)

    def __len__(self) -> int:
        return 0 if self._store.note is None else len(by_path(self._store.entries())[0])

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._store.folder

    @property
    def model(self) -> Model:
        """The model of queries and new photos, loaded when it is first asked for.

        Raises:
            CheckpointError: it cannot be loaded, or does not embed.
            OpenBlipError: it is not the one that the index was made with.
        """
        import openblip
        from openblip.models.abilities import require

        if self._model is None:
            self._model = openblip.load(**self._loading, **self._running)
        require(self._model, "embed")
        if not self._checked and self._store.note is not None:
            check_same(self._store.note, self._model, self.folder)
            self._checked = True
        return self._model

    def add(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        batch_size: int = 8,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Changes:
        """Bring the index up to date with files, folders (with their subfolders) and patterns.

        Files that are as they were, by size and time of change, are not read. Photos leave the index if their files
        are gone from a folder that is named here; all others stay. What was done when this is interrupted, is kept.

        Args:
            batch_size: photos that are encoded together.
            progress: called with how many of the files that are not as they were are done, and how many there are.

        Raises:
            ImageError: an input that gives no image; single files that cannot be read are in `Changes.errors`.
            OpenBlipError: another process is adding; another model made the index; it cannot be written.
        """
        batch_size = whole_number("batch_size", batch_size, 1)
        named = find_files([paths] if isinstance(paths, str | Path) else list(paths))
        with self._store.held():
            self._note()
            self._loaded = None
            update = Update(self._store, lambda: self.model, batch_size, progress)
            changes = update.run(named)
            self._store.tidy(self.exact_images)
        return changes

    def prune(self) -> int:
        """Drop all photos whose files are gone, in whatever folder; how many these were.

        Raises:
            OpenBlipError: another process is adding; the index cannot be written.
        """
        self._there()
        with self._store.held():
            gone = [entry.number for entry in self._store.entries() if not os.path.lexists(entry.path)]
            self._loaded = None
            self._store.remove(gone)
            self._store.tidy(self.exact_images)
        return len(gone)

    def status(self) -> Status:
        """What is in it. Raises OptionError when there is no index."""
        note = self._there()
        self._store.refresh()
        latest, _ = by_path(self._store.entries())
        folders = Counter(os.path.dirname(path) for path in latest)
        return Status(
            len(latest), note.model, note.vectors, note.width, self._store.nbytes(), dict(folders.most_common())
        )

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageSource | None = None,
        without: str | Iterable[str] = (),
        top: int = TOP,
        rerank: int = RERANK,
        min_score: float | None = None,
    ) -> list[Found]:
        """The photos that fit a text, or are like a photo, best first.

        Photos whose files are gone are left out, with a warning.

        Args:
            text: what to look for; either this or `image`.
            image: a photo to compare with.
            without: what photos should not show. Of its cosines the greatest is subtracted, and photos that fit it
                better than what is looked for are left out; of those that are read together with the text, also
                photos that show it more probably than not.
            top: how many photos at most.
            rerank: how many of the best by cosine are read together with the text (ITM), and ordered by this first; 0
                for none. A model without ITM, and a search by a photo, do without.
            min_score: of the photos to give, see `Found.score`. Where photos are read together with the text, others
                are left out then.

        Raises:
            OptionError: there is no index; neither a text nor an image, or both; an empty text; a number out of range.
            ImageError: `image` cannot be read.
        """
        if (text is None) == (image is None):
            raise OptionError("say what to look for: a text or an image, one of both")
        top, rerank = whole_number("top", top, 1), whole_number("rerank", rerank, 0)
        unwanted = [without] if isinstance(without, str) else list(without)
        if any(not one.strip() for one in [*unwanted, *([] if text is None else [text])]):
            raise OptionError("a text to search for is empty: say what photos should or should not show")
        self._there()
        query = self.model.embed_texts([text or ""]) if image is None else self.model.embed_images([image])[0]
        others = [vector[None] for vector in self.model.embed_texts(unwanted)]
        reads = image is None and rerank > 0 and self._reads_pairs()
        near = self._nearest(query, others, max(top, rerank if reads else 0))
        # Rounded to half precision, unit vectors are not quite of length 1.
        found = [Found(entry.path, min(score, 1.0), min(score, 1.0)) for entry, score in near]
        if unwanted:
            found = [one for one in found if one.itc >= 0]
        if reads and text is not None:
            head = self._reranked(text, unwanted, found[:rerank])
            found = head if min_score is not None else head + found[rerank:]
        return [one for one in found if min_score is None or one.score >= min_score][:top]

    def duplicates(self, min_similarity: float = NEAR) -> list[list[Found]]:
        """Groups of photos that show the same, largest group first; in a group, each has its likeness to the first.

        Two belong together if their files have the same content, or their vectors, one by one, a mean cosine of at
        least `min_similarity`; and so do those that belong together with one of them. At 1, contents alone count.

        Raises:
            OptionError: `min_similarity` is not above 0 and at most 1, or there are too many photos for it.
        """
        from openblip.search.duplicates import group

        if not 0 < min_similarity <= 1:
            raise OptionError(f"the similarity of duplicates is {min_similarity}: it must be above 0 and at most 1")
        self._there()
        if min_similarity == 1:
            return group(list(by_path(self._store.entries())[0].values()), [], 1)
        loaded = self._all()
        return group(loaded.entries, loaded.blocks, min_similarity)

    def _nearest(self, query: Tensor, unwanted: Sequence[Tensor], count: int) -> list[tuple[Entry, float]]:
        """The best entries whose files are there, with exact scores."""
        from openblip.search import scan

        if self._store.count() > self.exact_images:
            numbers = self._store.candidates(query, max(CANDIDATES, 4 * count), PROBES)
            if numbers is not None:
                known = {entry.number: entry for entry in by_path(self._store.entries(numbers))[0].values()}
                there, vectors = self._store.take(list(known))
                scores = scan.exact(vectors, query, unwanted)
                order = scores.argsort(descending=True, stable=True).tolist()
                return self._present(((known[there[row]], float(scores[row])) for row in order), count)
        loaded = self._all()
        codes = loaded.codes_if_worth()
        wanted = count
        while True:
            best = scan.best(loaded.blocks, query, wanted, unwanted, codes)
            found = self._present(((loaded.entries[place], score) for place, score in best), count)
            if len(found) == count or wanted >= len(loaded.entries):
                return found
            wanted *= 4  # many files are gone

    def _present(self, ranked: Iterable[tuple[Entry, float]], count: int) -> list[tuple[Entry, float]]:
        found: list[tuple[Entry, float]] = []
        gone = 0
        for entry, score in ranked:
            if len(found) == count:
                break
            if os.path.exists(entry.path):
                found.append((entry, score))
            else:
                gone += 1
        if gone:
            LOG.warning("%d photos that fit are gone: openblip index --prune drops them from the index", gone)
        return found

    def _all(self) -> _Loaded:
        """All photos in the order of their vectors, kept until the index changes."""
        version = self._store.version()
        if self._loaded is None or self._loaded.version != version:
            self._loaded = None  # frees the memory of what is not needed any more
            known = {entry.number: entry for entry in by_path(self._store.entries())[0].values()}
            entries, blocks = [], []
            for numbers, block in self._store.blocks():
                # Rows that an interruption left, or that were added meanwhile, have no entry.
                rows = [row for row, number in enumerate(numbers) if number in known]
                entries += [known[numbers[row]] for row in rows]
                blocks.append(block if len(rows) == len(numbers) else block[rows])
            self._loaded = _Loaded(version, entries, blocks)
        return self._loaded

    def _reads_pairs(self) -> bool:
        from openblip.models.abilities import matcher_of

        return "match" in self.model.abilities and matcher_of(self.model, "match").reads_pairs

    def _reranked(self, text: str, unwanted: Sequence[str], found: Sequence[Found]) -> list[Found]:
        cosines = {one.path: one.itc for one in found}
        paths = list(cosines)
        while paths:
            try:
                ranked = self.model.rank_images(text, paths, top=None, rerank=len(paths))
                shown = self.model.scores(paths, unwanted, itm=True).itm if unwanted else None
                break
            except ImageError as error:
                # Rare: it could be read when it was indexed. The others are in the cache of encoded images.
                left = [path for path in paths if not _is_of(error, path)]
                if len(left) == len(paths):
                    raise
                LOG.warning("%s", error)
                paths = left
        else:
            return []
        reranked = []
        for one in ranked:
            if one.itm is None or (shown is not None and float(shown[one.index].max()) >= UNWANTED):
                continue
            path = paths[one.index]
            reranked.append(Found(path, one.itm, cosines[path], one.itm))
        return reranked

    def _note(self) -> None:
        """Make the index if it is new."""
        self._store.refresh()
        if self._store.note is None:
            self._store.create(note_of(self.model, self._loading))
            self._checked = True
        elif self._loading != self._store.note.loading:
            self.model  # noqa: B018  # it is another by its name: what it computes decides

    def _there(self) -> Note:
        if self._store.note is None:
            self._store.refresh()
        if self._store.note is None:
            raise OptionError(f"there is no index in {self.folder}: make one with openblip index PHOTOS --db FOLDER")
        return self._store.note


def _lasting(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name)) if os.path.isdir(os.path.expanduser(name)) else name


def _is_of(error: ImageError, path: str) -> bool:
    from openblip.images.sources import describe_source

    return error.source in (path, describe_source(path))
