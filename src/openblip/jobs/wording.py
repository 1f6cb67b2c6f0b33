"""What becomes of a text that a model wrote: words are replaced and looked for, tags are there once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from openblip.errors import OptionError
from openblip.jobs.replacements import Replacements
from openblip.jobs.rows import ColumnType
from openblip.jobs.words import WordList


@dataclass(frozen=True)
class Wording:
    """What is done with texts.

    Attributes:
        lists: the words that are looked for, each list with a column of its own.
        replacements: words that others take the place of, before anything is looked for.
        has_tags: the texts are tags with commas between them.
    """

    lists: tuple[WordList, ...] = ()
    replacements: Replacements | None = None
    has_tags: bool = False

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """The columns of the lists."""
        return {one.name: "list<string>" for one in self.lists}

    @property
    def settings(self) -> dict[str, str]:
        """What decides the texts beside the command's own words: the content of files."""
        found = {f"the word list {one.name}": one.digest for one in self.lists}
        return found if self.replacements is None else found | {"the words of --replace": self.replacements.digest}

    def check(self, columns: Collection[str]) -> None:
        """Raises OptionError if a list is called as one of these columns."""
        for one in self.lists:
            if one.name in columns:
                raise OptionError(
                    f"a list of words and a column are both called {one.name}: call the list otherwise, as in "
                    f"--find found_{one.name}={one.name}"
                )

    def applied(self, texts: Iterable[str]) -> list[str]:
        """Texts with words replaced."""
        return [text if self.replacements is None else self.replacements.apply(text) for text in texts]

    def found(self, texts: Iterable[str]) -> dict[str, list[str]]:
        """The words of each list in texts, in the order in which they first occur."""
        together = list(texts)
        return {
            one.name: list(dict.fromkeys(term for text in together for term in one.find(text))) for one in self.lists
        }

    def finished(self, text: str) -> str:
        """A text with its prefix and suffix as it is written to the output."""
        return unique_tags(text) if self.has_tags else text


def unique_tags(text: str) -> str:
    """Tags with commas between them, each once and in the order in which they first occur.

    Tags that differ in case, in spaces, or in underscores for spaces are one; the first of them stays as it is written.

    >>> unique_tags("my_dog, 1dog,outdoors , My dog,, Outdoors")
    'my_dog, 1dog, outdoors'
    """
    tags: dict[str, str] = {}
    for tag in text.replace("\n", ",").split(","):
        shown = " ".join(tag.split())
        key = " ".join(shown.replace("_", " ").casefold().split())
        if key:
            tags.setdefault(key, shown)
    return ", ".join(tags.values())
