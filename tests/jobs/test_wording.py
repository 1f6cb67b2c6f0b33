"""Words of texts are replaced in number and capitals, or go with what belongs to them; tags are there once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from openblip.errors import OptionError
from openblip.jobs.replacements import Replacements, read_replacements
from openblip.jobs.wording import Wording, unique_tags
from openblip.jobs.words import load_word_lists


@pytest.mark.parametrize(
    ("replace", "text", "result"),
    [
        ("dog=cat", "two Dogs and a dog . The dog's DOG", "two Cats and a cat . The cat's CAT"),
        ("dog=cat", "hotdogs, a hot-dog, dogged", "hotdogs, a hot-cat, dogged"),
        ("dog=animal", "a dog, A dog, the dog, two dogs", "an animal, An animal, the animal, two animals"),
        ("animal=dog", "an animal", "a dog"),
        ("car=SUV", "a car", "an SUV"),
        ("suit=uniform", "an old suit, a suit", "an old uniform, a uniform"),
        ("man=person", "two men, a man", "two people, a person"),
        ("people=humans", "a person among people", "a human among humans"),
        ("dog, puppy=hound", "a puppy and two puppies", "a hound and two hounds"),
        ("BMW=car", "a BMW. BMW", "a car. Car"),
        ("light blue=sky blue", "a light-blue and blue hat", "a sky blue and blue hat"),
        ("gray=silver", "a grey cat", "a silver cat"),
        ("arafed=", "arafed woman in a dress", "woman in a dress"),
        ("arafed=", "Arafed woman, arafed. Arafed man", "Woman. Man"),
        ("a photo of=", "a photo of an owl", "an owl"),
        ("old=", "an old dog and an old, old, brown cat", "a dog and a brown cat"),
        ("dog=", "a photo of a dog .", "a photo ."),
        ("dog=", "a photo of a dog.", "a photo."),
        ("dog=", "a dog and a cat", "a cat"),
        ("dog=", "a man with a dog and a cat", "a man with a cat"),
        ("dog=", "a man with a dog, a cat", "a man, a cat"),
        ("dog=", "1girl, dog, cat, dog", "1girl, cat"),
        ("dog=", "Dog", ""),
        ("dog=cat", "  two   spaces\tstay ", "  two   spaces\tstay "),
        ("a=b", "", ""),
    ],
)
def test_replacements(replace: str, text: str, result: str) -> None:
    found = read_replacements([replace])
    assert found is not None and found.apply(text) == result


def test_what_was_put_in_is_not_replaced_again() -> None:
    swap = Replacements((("cat", "dog"), ("dog", "cat")))
    assert swap.apply("a cat, two dogs") == "a dog, two cats"


def test_tables_of_replacements(tmp_path: Path) -> None:
    table, other = tmp_path / "words.csv", tmp_path / "words.tsv"
    table.write_text('\ufeffold,new\n# people\n"man, guy",person\n\narafed,\n', encoding="utf-8")
    other.write_text("puppy\tyoung dog\n", encoding="utf-8")
    found = read_replacements([str(table), "kitten=young cat", str(other)])
    assert found is not None
    assert found.pairs[:3] == (("man, guy", "person"), ("arafed", ""), ("kitten", "young cat"))
    assert found.apply("arafed guys with kittens and a puppy") == "people with young cats and a young dog"
    assert pickle.loads(pickle.dumps(found)).digest == found.digest
    assert read_replacements([]) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["dog"], "--replace is 'dog': give OLD=NEW, or a .csv or .tsv file"),
        (["=dog"], "give OLD=NEW"),
        (["...=dog"], "--replace ...=dog is '...': write words"),
        (["dog=cat", "dog=cow"], "--replace has 'dog' twice"),
        (["dog=cat", "hound, dog=cow"], "--replace hound, dog=cow has 'dog', which stands for 'dog' in another line"),
        (["FILE.csv"], "FILE.csv, line 2, has not an old and a new word: write old,new"),
    ],
)
def test_wrong_replacements(tmp_path: Path, given: list[str], said: str) -> None:
    path = tmp_path / "FILE.csv"
    path.write_text("dog,cat\ndog,cat,cow\n", encoding="utf-8")
    with pytest.raises(OptionError) as raised:
        read_replacements([str(path) if one == "FILE.csv" else one for one in given])
    assert said in str(raised.value)


def test_tags() -> None:
    text = "my_dog, 1dog,outdoors , My dog,, Outdoors\nbig  tree, solo,"
    assert unique_tags(text) == "my_dog, 1dog, outdoors, big tree, solo"
    assert unique_tags(" , ,") == ""


def test_words_are_looked_for_after_they_are_replaced() -> None:
    wording = Wording(load_word_lists("colors,textures"), read_replacements(["navy=blue"]), has_tags=True)
    texts = wording.applied(["a navy coat with blue stripes", "a red coat"])
    assert texts == ["a blue coat with blue stripes", "a red coat"]
    assert wording.found(texts) == {"colors": ["blue", "red"], "textures": ["striped"]}
    assert wording.columns == {"colors": "list<string>", "textures": "list<string>"}
    assert wording.finished("mine, a coat, Mine") == "mine, a coat"
    with pytest.raises(
        OptionError, match="both called textures: call the list otherwise, as in --find found_textures="
    ):
        wording.check(["id", "textures"])
