"""Words of lists in captions: inflections, terms of several words, and what only looks like a word of the list."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from openblip.errors import OptionError
from openblip.jobs.inflections import forms_of
from openblip.jobs.words import BUILT_IN, WordList, built_in_lists, load_word_lists


def words(*lines: str) -> WordList:
    return WordList.from_lines("words", lines)


@pytest.mark.parametrize(
    ("caption", "colors"),
    [
        ("a woman in a light blue dress and a blue hat", ["light blue", "blue"]),
        ("A LIGHT-BLUE car, Blue sky; another blue car", ["light blue", "blue"]),
        ("a light, blue with cold", ["blue"]),
        ("a stand on an orange plastic standing frame", ["orange"]),
        ("a bunch of pink and green colored rollers", ["pink", "green"]),
        ("a reddish-brown dog and a grey cat", ["red", "brown", "gray"]),
        ("a golden retriever with a gold medal", ["gold"]),
        ("a silver metal object on top of a white background", ["silver"]),
        ("a blue and white rubber toy on a white background", ["blue", "white"]),
        ("a white ball on a black background", ["white"]),
        ("a black and white photo of a man in a red shirt", ["red"]),
        ("a black and white dog", ["black", "white"]),
        ("a glass of orange juice beside sliced oranges and greens", []),
        ("a peach on a plate, a peach-coloured wall", ["peach"]),
        ("a girl eats ice cream on a cream sofa", ["cream"]),
        ("the dog's blue ball is the brown dog's", ["blue", "brown"]),
        ("a multi-colored ball, a multicoloured kite", ["multicolored"]),
        ("a navy blue coat, dark green pants, off-white shoes", ["navy blue", "dark green", "off-white"]),
        ("a blond boy, a blonde woman", ["blond"]),
        ("", []),
    ],
)
def test_colors(caption: str, colors: list[str]) -> None:
    (found,) = load_word_lists("colors")
    assert found.find(caption) == colors


@pytest.mark.parametrize(
    ("caption", "textures", "materials"),
    [
        ("a man in a striped shirt with a wooden bat", ["striped"], ["wood"]),
        ("stripes and polka - dots on a stripy woollen scarf", ["striped", "polka dot"], ["wool"]),
        ("a polka-dotted dress made of silk", ["polka dot"], ["silk"]),
        ("two dogs playing rough in rough water near a rough wall", ["rough"], []),
        ("a checkered flag, a flowered dress", ["checkered", "floral"], []),
        ("a dog with brown spots in a parking spot", ["spotted"], []),
        ("a leopard print coat", ["leopard print"], []),
        ("a man through a place in lace", [], ["lace"]),
        ("a woman with glasses and a glass of wine on a glass table", [], ["glass"]),
        ("a stainless steel pot on ceramic tiles", [], ["steel", "ceramic", "tile"]),
    ],
)
def test_textures_and_materials(caption: str, textures: list[str], materials: list[str]) -> None:
    found = load_word_lists("textures,materials")
    assert [one.find(caption) for one in found] == [textures, materials]


@pytest.mark.parametrize(
    ("line", "finds", "leaves"),
    [
        ("box", ["a Box", "two boxes", "the box's lid"], ["boxer", "unbox"]),
        ("leaves", ["a leaf", "leaves"], ["he left"]),
        ("children", ["a child", "children"], ["childish"]),
        ("teddy bear", ["teddy bears", "a teddy-bear", "teddy  bear"], ["teddy. Bear", "a bear", "teddy, bear"]),
        ("t-shirt", ["t-shirts", "a T shirt"], ["shirt"]),
        ("striped", ["stripes", "a stripe", "stripey"], ["stripper", "strip"]),
        ("run*", ["run", "running", "runway"], ["rerun"]),
        ('"orange"', ["an orange shirt"], ["oranges"]),
        ("rose: rose-colored, pink", ["rose colored", "rose-coloured", "pink"], ["a rose"]),
        ("café", ["CAFE\u0301", "cafés"], ["cafe"]),
        ("glasses", ["sunny glasses"], ["a glass", "sunglasses"]),
        ("4x4", ["a 4x4"], ["4"]),
        ("红色", ["一辆红色的车"], ["红 车"]),
        ("लाल", ["एक लाल कार"], ["एक कार"]),
    ],
)
def test_own_lists(line: str, finds: list[str], leaves: list[str]) -> None:
    term = words(line).find(finds[0])
    assert len(term) == 1
    assert [words(line).find(text) for text in finds] == [term] * len(finds)
    assert [words(line).find(text) for text in leaves] == [[]] * len(leaves)


def test_what_a_term_is_called_is_as_the_list_writes_it() -> None:
    found = words("# cars", "", "VW Golf, golf  # a comment, golfs", "BMW*: bmw*", "! mini golf")
    assert found.find("golf, a bmw320, a VW golf") == ["VW Golf", "BMW"]
    assert found.find("mini golf") == []


def test_of_two_lines_the_written_form_goes_before_the_inflected_one() -> None:
    assert words("sunglass", "sunglasses").find("sunglasses") == ["sunglasses"]
    assert words("dots", "dotted").find("dotted with dots") == ["dotted", "dots"]


def test_numbers_of_nouns() -> None:
    pairs = """box/boxes dish/dishes berry/berries toy/toys knife/knives man/men snowman/snowmen shoe/shoes house/houses
    vase/vases tomato/tomatoes photo/photos cookie/cookies tie/ties bus/buses lens/lenses human/humans shelf/shelves
    bookshelf/bookshelves bikini/bikinis glass/glasses dress/dresses child/children person/people horse/horses"""
    for pair in pairs.split():
        one, many = pair.split("/")
        assert many in forms_of(one), pair
        assert one in forms_of(many) or many == "glasses", pair
    for word in ("shorts", "pants", "grass", "glasses", "sheep"):
        assert forms_of(word) == {word}


def test_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("animals.txt").write_bytes("\ufeffdog, puppy\r\ncat\r\n".encode())
    Path("a,b.txt").write_text("bird\n", encoding="utf-8")
    found = load_word_lists(["colors, animals.txt", "pets=animals.txt", "a,b.txt"])
    assert [one.name for one in found] == ["colors", "animals", "pets", "a,b"]
    assert found[1].find("two puppies, cats and a dog") == ["dog", "cat"]
    assert pickle.loads(pickle.dumps(found[1])) == found[1]
    assert found[1].digest == found[2].digest != found[3].digest
    Path("animals.txt").write_text("# the same\ncat\ndog, puppy\n", encoding="utf-8")
    assert load_word_lists("animals.txt")[0].digest == found[1].digest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no words in it: write a word in each line"),
        (b"# only this\n! red wine\n", "has no words in it"),
        (b"red,,blue\n", "line 1, is '': write words"),
        (b"ok\n: red\n", "line 2, is 'red': write words"),
        (b"***\n", "write words"),
        (b"surf* board\n", "write words"),
        (b"red, rose\npink, rose\n", "line 2, has 'rose', which stands for 'red' in another line"),
        (b"red\n! red\n", "line 2, has 'red', which stands for 'red'"),
        (b"\xff\xfe\x00r", "is no text in UTF-8"),
        (b"red\0blue\n", "is no text: write a word in each line"),
    ],
)
def test_a_wrong_list_is_refused_in_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(OptionError) as raised:
        load_word_lists(str(path))
    assert said in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("colours", "there is no list of words colours: did you mean colors?"),
        ("gone.txt", "there is no list of words gone.txt: give one of colors, materials, shapes, textures, or a file"),
        ("colors,colors", "two lists of words are called colors: call one otherwise"),
        (" , ", "no list of words is named"),
        ("x" * 5000, "there is no list of words"),
    ],
)
def test_wrong_names(names: str, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        load_word_lists(names)
    assert said in str(raised.value)


def test_the_lists_of_the_package_hold_together() -> None:
    assert built_in_lists() == ["colors", "materials", "shapes", "textures"]
    for one in load_word_lists(",".join(built_in_lists())):
        terms = {term for term in one.forms.values() if term is not None}
        lines = (BUILT_IN / f"{one.name}.txt").read_text(encoding="utf-8").splitlines()
        written = [line for line in lines if line and line[0] not in "#!"]
        assert len(written) == len(terms)
        for term in terms:  # what is found is found again, unless only other words stand for it
            assert one.find(term) in ([term], []), term


SAME = """a pair of orange plastic toys on a white background
a red metal sculpture with a curved shape
a set of wooden blocks in a row
a pink and blue headband on a white surface
a silver metal object with a red dot on it
a black ball with a red handle on a white background
a clear plastic keychain with a blue, green and white design
an orange rubber ring on a white background
a wooden stick with a red handle
a furry brown dog in a velvet chair
a sky blue vase with a smooth rim
a shiny gold ring
a metal bar with a hole in it"""
OTHERWISE = {
    "a bunch of pink and green colored rollers": {"red"},
    "a ball with multicolored beads": {"red"},
    "an orange plastic stand with a yellow top": {"tan"},
    "a clear plastic rectangle": {"tan"},
    "a vase that has been placed on a table": {"lace"},
    "a disc with a hole cut through the center": {"rough"},
    "a hair dryer": {"dry"},
    "a pencil sharpener": {"sharp"},
    "a blue and white toy on a white background": {"white"},
    "a stick that looks like a grey dog": {"gray"},
}
"""Captions with the words that one of the two finds: letters within words, and colors that it passes over."""


def test_a_table_of_products_has_the_words_that_a_script_finds_in_it() -> None:
    """A script as people write it: letters anywhere in a caption, and no white if there is a background."""
    colors = "red orange yellow green blue purple pink brown gray black white gold silver tan sky-blue".split()
    colors[-1] = "sky blue"
    textures = "smooth rough sharp wet dry wooden plastic rubber furry lace silk velvet metallic shiny".split()
    ours = words(*colors, *textures, "! white background")

    def script(caption: str) -> set[str]:
        found = {word for word in [*colors, *textures] if word in caption}
        return found - {"white"} if "background" in caption else found

    for caption in SAME.splitlines():
        found = set(ours.find(caption))
        assert found | ({"blue"} if "sky blue" in found else set()) == script(caption), caption
    for caption, expected in OTHERWISE.items():
        assert set(ours.find(caption)) ^ script(caption) == expected, caption
    (built_in,) = load_word_lists("colors")
    assert built_in.find("a blue and white toy on a white background") == ["blue", "white"]
