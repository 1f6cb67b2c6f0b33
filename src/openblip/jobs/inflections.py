"""The forms of English words that mean the same in a caption: singular and plural, and names of patterns.

These are a few rules and the exceptions that captions have, not a dictionary: a form that no text has does no harm.
"""

from __future__ import annotations

import re

_IRREGULAR = """
    calf/calves child/children elf/elves foot/feet goose/geese half/halves hoof/hooves knife/knives leaf/leaves
    life/lives loaf/loaves man/men mouse/mice ox/oxen person/people scarf/scarves shelf/shelves thief/thieves
    tooth/teeth wife/wives wolf/wolves woman/women bus/buses canvas/canvases gas/gases iris/irises lens/lenses
    tennis/tennis species/species series/series potato/potatoes tomato/tomatoes hero/heroes echo/echoes
"""
_PLURALS = dict(pair.split("/") for pair in _IRREGULAR.split())
_SINGULARS = {plural: singular for singular, plural in _PLURALS.items()}
_ENDS = tuple((one, _PLURALS[one]) for one in "child foot knife leaf man shelf tooth wife".split())
"""What compounds end with: snowmen, bookshelves."""
_NO_COMPOUNDS = frozenset("caiman german human ottoman roman shaman talisman".split())
_ENDING_IN_IE = frozenset(
    "birdie brownie calorie collie cookie doggie genie hoodie hippie movie newbie pixie prairie selfie smoothie "
    "sweetie talkie zombie".split()
)
_ONE_NUMBER = frozenset(
    """
    christmas clothes deer fish glasses goggles grass headphones jeans news overall overalls pajamas pants pyjamas
    scissors sheep short shorts sunglasses swiss tight tights tongs trousers tweezers various
    """.split()
)
"""Words without another number, or whose other number is another word: glasses are no glass, shorts are not short."""

_FAMILIES = (
    "stripe stripes striped stripy stripey",
    "dot dots dotted dotty",
    "spotted spotty",
    "checked checkered chequered",
    "speckle speckles speckled",
    "freckle freckles freckled",
    "flowered flowery",
    "pattern patterns patterned",
    "texture textures textured",
    "ruffle ruffles ruffled ruffly",
    "wrinkle wrinkles wrinkled wrinkly",
    "swirl swirls swirled swirly",
    "sequin sequins sequined sequinned",
    "studded studs",
    "furry furred",
    "woolly wooly",
    "woolen woollen",
    "dye dyes dyed",
)
_FAMILY_OF = {word: frozenset(family.split()) for family in _FAMILIES for word in family.split()}
"""Adjectives and nouns for one pattern: who looks for one of them means the others, too."""


def forms_of(word: str) -> frozenset[str]:
    """A lower-case word, its singular or plural, and the other words of its family.

    >>> sorted(forms_of("box")), sorted(forms_of("striped"))
    (['box', 'boxes'], ['stripe', 'striped', 'stripes', 'stripey', 'stripy'])
    """
    return _FAMILY_OF.get(word) or frozenset({word, plural_of(word) or word, singular_of(word) or word})


def plural_of(word: str) -> str | None:
    """The plural of a lower-case noun; None if the word is one or has none."""
    if word in _PLURALS:
        return _PLURALS[word]
    for singular, plural in _ENDS:
        if word.endswith(singular) and word not in _NO_COMPOUNDS:
            return word.removesuffix(singular) + plural
    if word in _ONE_NUMBER or singular_of(word) is not None:
        return None
    if re.search(r"[sxz]$|[cs]h$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def singular_of(word: str) -> str | None:
    """The singular of a lower-case plural; None if the word does not look like one."""
    if word in _SINGULARS:
        return _SINGULARS[word]
    for singular, plural in _ENDS:
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    if word in _ONE_NUMBER or word in _PLURALS or len(word) < 4 or not re.search(r"[^su]s$", word):
        return None
    if word.endswith("ies") and len(word) > 4 and word[:-1] not in _ENDING_IN_IE:
        return word[:-3] + "y"
    if re.search(r"(ss|x|zz|[cs]h)es$", word):
        return word[:-2]
    return word[:-1]
