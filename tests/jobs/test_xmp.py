"""XMP files are changed where they must be, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from openblip.errors import OpenBlipError
from openblip.jobs.sidecar_files import SidecarText, sidecar_of, write_sidecar
from openblip.jobs.xmp import DC, NEW, RDF, read_xmp

PLACE = Path("photo.jpg.xmp")
EDITED = f"""\ufeff<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool'>
<!-- edited by hand -->
<r:RDF xmlns:r='{RDF}'>
 <r:Description r:about='uuid:7'
  xmlns:darktable='http://darktable.sf.net/' darktable:history='a &gt; b > c'>
  <darktable:masks><r:Seq><r:li>&#x2603; <![CDATA[<b>]]></r:li></r:Seq></darktable:masks>
 </r:Description>
 <r:Description r:about='uuid:7' xmlns:q='http://purl.org/dc/elements/1.1/'>
  <q:creator><r:Seq><r:li>Ann</r:li></r:Seq></q:creator>
  <q:description><r:Alt>
   <r:li xml:lang='de'>ein Hund</r:li><r:li xml:lang='x-default'>my dog</r:li>
  </r:Alt></q:description>
  <q:subject/>
 </r:Description>
</r:RDF>
</x:xmpmeta>
<?xpacket end='w'?>"""


def changed(content: bytes, description: str | None, subjects: list[str] | None) -> bytes:
    return read_xmp(content, PLACE).with_properties(description, subjects)


def test_every_other_byte_stays() -> None:
    old = EDITED.encode()
    new = changed(old, "a <dog> & a cat", ["dog", "cat"])
    found = read_xmp(new, PLACE)
    assert found.description == {"x-default": "a <dog> & a cat", "de": "ein Hund"}
    assert found.subjects == ("dog", "cat")
    before, behind = old.partition(b"<q:description>")[0], old.partition(b"<q:subject/>")[2]
    assert new.startswith(before) and new.endswith(behind)
    assert changed(new, "a <dog> & a cat", ["dog", "cat"]) == new
    assert changed(old, "my dog", None) == old
    ElementTree.fromstring(new.partition(b"?>")[2])  # another parser reads it


@pytest.mark.parametrize(
    "content",
    [NEW, f'<a:RDF xmlns:a="{RDF}"/>', f'<RDF xmlns="{RDF}" note="/>" ></RDF>', EDITED.replace("<q:subject/>", "")],
)
def test_properties_that_are_not_there_yet(content: str) -> None:
    new = (
        changed(content.encode(), "a dog", ["dog"])
        if "my dog" not in content
        else changed(content.encode(), None, ["dog"])
    )
    found = read_xmp(new, PLACE)
    assert found.subjects == ("dog",) and found.description.get("x-default") in ("a dog", "my dog")
    assert new.count(b"uuid:7") in (0, 3)  # all of a photo is about one thing
    ElementTree.fromstring(new.partition(b"?>")[2] if new.startswith(b"\xef") else new)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no XMP file in UTF-8 (no element found"),
        (b"a photo", "no XMP file in UTF-8 (syntax error"),
        (b"<html/>", "it has no rdf:RDF"),
        (b"\xff\xfe<\0a\0/\0>\0", "it has no rdf:RDF"),
        (NEW.replace("UTF-8", "latin-1").encode(), "it is in latin-1"),
        (NEW.encode()[:-20], "no XMP file in UTF-8"),
        (b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>', "it has a DOCTYPE"),
        (
            f'<r:RDF xmlns:r="{RDF}" xmlns:d="{DC}"><r:Description d:subject="x"/></r:RDF>'.encode(),
            "its description or subject is an attribute",
        ),
    ],
)
def test_what_cannot_be_changed_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(OpenBlipError) as refused:
        read_xmp(content, PLACE)
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", ["txt", "xmp"])
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append", "prepend"])
def test_twice_is_once(tmp_path: Path, kind: str, existing: str) -> None:
    place = tmp_path / f"photo.{kind}"
    text = SidecarText("a brown dog", ("brown", "dog"))
    olds = ["a cat, brown\n", "a brown  dog,dog", "", "two\nlines\n"] if kind == "txt" else [NEW, EDITED]
    for old in olds:
        place.write_text(old, encoding="utf-8")
        write_sidecar(place, kind, existing, text)  # type: ignore[arg-type]
        once = place.read_bytes()
        write_sidecar(place, kind, existing, text)  # type: ignore[arg-type]
        assert place.read_bytes() == once
        if existing == "skip" and kind == "txt":
            assert once == old.encode()


def test_texts_are_put_together(tmp_path: Path) -> None:
    place = tmp_path / "photo.txt"
    text = SidecarText("a brown\n dog ", ("brown", "dog", "brown"))

    def after(old: str | None, existing: str) -> str:
        place.unlink(missing_ok=True)
        if old is not None:
            place.write_bytes(old.encode())
        write_sidecar(place, "txt", existing, text)  # type: ignore[arg-type]
        return place.read_bytes().decode()

    assert after(None, "append") == "a brown dog, brown, dog\n"
    assert after("hot dog, Brown\r\n", "append") == "hot dog, Brown, a brown dog, brown, dog\r\n"
    assert after("\ufeffmy tag", "prepend") == "\ufeffa brown dog, brown, dog, my tag"
    assert after("dog,brown", "append") == "dog,brown, a brown dog"
    assert after("mine", "overwrite") == "a brown dog, brown, dog\n"
    place.write_bytes(b"caf\xe9")
    with pytest.raises(OpenBlipError, match="is no text in UTF-8: save it as such"):
        write_sidecar(place, "txt", "append", text)
    assert place.read_bytes() == b"caf\xe9"
    xmp = tmp_path / "photo.xmp"
    for existing, expected in (
        ("append", "my dog\na brown dog"),
        ("prepend", "a brown dog\nmy dog"),
        ("skip", "my dog"),
    ):
        xmp.write_text(EDITED, encoding="utf-8")
        write_sidecar(xmp, "xmp", existing, text)  # type: ignore[arg-type]
        found = read_xmp(xmp.read_bytes(), xmp)
        assert (found.description["x-default"], found.subjects) == (expected, ("brown", "dog"))


def test_names_permissions_and_links(tmp_path: Path) -> None:
    image = str(tmp_path / "my.photo.jpg")
    assert sidecar_of(image, "txt").name == "my.photo.txt"
    assert sidecar_of(image, "xmp").name == "my.photo.jpg.xmp"
    (tmp_path / "my.photo.xmp").touch()
    assert sidecar_of(image, "xmp").name == "my.photo.xmp"
    (tmp_path / "my.photo.jpg.xmp").touch()
    assert sidecar_of(image, "xmp").name == "my.photo.jpg.xmp"
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("mine")
    real.chmod(0o640)
    link.symlink_to(real)
    write_sidecar(link, "txt", "append", SidecarText("a dog"))
    assert link.is_symlink() and real.read_text() == "mine, a dog"
    assert os.name == "nt" or real.stat().st_mode & 0o777 == 0o640
