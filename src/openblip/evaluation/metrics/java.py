"""Run the Java programs behind published caption scores, which are part of the package pycocoevalcap.

We do not use its wrappers: they write into the installed package, depend on the locale, and shift all captions after a
caption with a line separator.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from openblip.errors import OpenBlipError, OptionError
from openblip.text import text_list

INSTALL_HINT = 'caption metrics need more packages: pip install "openblip[eval]"'
SPEAK = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
"""The same encoding and decimal point on every machine."""

NOT_WORDS = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
"""What the COCO evaluation drops after splitting."""

PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""The parser of SPICE, which pycocoevalcap downloads when its own wrapper is first used."""


def has_java() -> bool:
    return shutil.which("java") is not None


def ptb_words(texts: str | Iterable[str]) -> list[str]:
    """Texts as Stanford's PTB tokenizer 3.4.1 splits them, lower case, without punctuation, words joined by spaces.

    Raises:
        OpenBlipError: no Java or no pycocoevalcap, or the tokenizer fails.
    """
    texts = text_list(texts)
    jar = _file("tokenizer/stanford-corenlp-3.4.1.jar")
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    found = _run(arguments, "the tokenizer", lines).split("\n")[:-1]
    if len(found) != len(texts):
        raise OpenBlipError(
            f"the tokenizer gave {len(found)} lines for {len(texts)} texts: use captions.tokenizer=never"
        )
    return [" ".join(word for word in line.split() if word not in NOT_WORDS) for line in found]


def meteor(captions: str | Iterable[str], references: Iterable[str | Iterable[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5 (Denkowski & Lavie 2014) of the corpus, and of each caption; words are split already.

    Raises:
        OpenBlipError: no Java or no pycocoevalcap, or METEOR fails.
    """
    captions, references = _lists(captions, references)
    jar = _file("meteor/meteor-1.5.jar")
    command = [_java(), *SPEAK, "-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as program:
        say, hear = cast(IO[str], program.stdin), cast(IO[str], program.stdout)
        try:
            statistics = []
            for caption, those in zip(captions, references, strict=True):
                parts = [text.replace("|||", "") for text in (*those, caption)]
                print("SCORE", *parts, sep=" ||| ", file=say, flush=True)
                statistics.append(hear.readline().strip())
            print("EVAL", *statistics, sep=" ||| ", file=say, flush=True)
            each = [float(hear.readline()) for _ in captions]
            whole = float(hear.readline())
            say.close()
        except (OSError, ValueError) as error:
            program.kill()
            raise OpenBlipError(f"METEOR failed in Java, which needs 2 GB of memory for it ({error})") from error
    return whole, each


def spice(captions: str | Iterable[str], references: Iterable[str | Iterable[str]]) -> tuple[float, list[float]]:
    """SPICE 1.0 (Anderson et al. 2016) of the corpus, and of each caption; words are split already.

    Raises:
        OpenBlipError: no Java, no pycocoevalcap or no parser, or SPICE fails.
    """
    captions, references = _lists(captions, references)
    _java()
    jar = _file("spice/spice-1.0.jar")
    if not all((jar.parent / "lib" / name).is_file() for name in PARSER):
        raise OpenBlipError(
            "its parser (Stanford CoreNLP 3.6.0, 0.4 GB) is not installed; get it where there is a network with: "
            'python -c "from pycocoevalcap.spice.spice import Spice; Spice()"'
        )
    rows = [
        {"image_id": number, "test": caption, "refs": list(those)}
        for number, (caption, those) in enumerate(zip(captions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows_file, scores_file = Path(folder) / "captions.json", Path(folder) / "scores.json"
        rows_file.write_text(json.dumps(rows), encoding="utf-8")
        _run(["-jar", "-Xmx8G", str(jar), str(rows_file), "-out", str(scores_file), "-silent"], "SPICE")
        found = json.loads(scores_file.read_text(encoding="utf-8"))
    each = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in found}
    scores = [each[number] for number in range(len(rows))]
    return sum(scores) / len(scores), scores


def _lists(
    captions: str | Iterable[str], references: Iterable[str | Iterable[str]]
) -> tuple[list[str], list[list[str]]]:
    """The captions, and the references of each. Raises OptionError if their numbers differ."""
    candidates = text_list(captions, "the captions")
    references_of_each = [text_list(those, "the references") for those in references]
    if len(candidates) != len(references_of_each):
        raise OptionError(
            f"{len(candidates)} captions and {len(references_of_each)} groups of references: give one for each"
        )
    return candidates, references_of_each


def _file(place: str) -> Path:
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise OpenBlipError(INSTALL_HINT)
    return Path(next(iter(spec.submodule_search_locations))) / place


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise OpenBlipError("it needs Java: install a Java runtime")
    return found


def _run(arguments: Sequence[str], name: str, text: str | None = None) -> str:
    done = subprocess.run(
        [_java(), *SPEAK, *arguments], input=text, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OpenBlipError(f"{name} failed in Java: {last}")
    return done.stdout
