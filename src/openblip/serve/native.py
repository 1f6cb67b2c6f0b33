"""The server's own endpoints: images as files of a form, one result in JSON."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request

from openblip.matching.matcher import TEMPLATES
from openblip.models.abilities import Ability, require
from openblip.serve.errors import Refusal, over_limit, unreadable
from openblip.serve.model_jobs import Classify, EmbedImages, EmbedTexts, MatchTexts, Prompted, Written
from openblip.serve.options import TextFields, check_text, write_job
from openblip.serve.service import Service
from openblip.serve.uploads import Form, Source, read_form, source_of

UNION_TYPE = re.compile(r"str|(list|dict|constrained-).*")
Fields = TypeVar("Fields", bound=BaseModel)
"""The fields of a form that an endpoint reads."""

Texts = Annotated[list[str], Field(min_length=1)]


class CaptionFields(TextFields):
    question: Annotated[
        str | None, Field(description="Answer this instead of describing the image.", examples=["what is this?"])
    ] = None
    prompt: Annotated[
        str | None, Field(description="How the caption begins; the result does not repeat it.", examples=["a photo of"])
    ] = None
    num_captions: Annotated[int, Field(ge=1, description="Captions, best first.", examples=[1])] = 1


class AskFields(TextFields):
    question: Annotated[
        Texts,
        Field(
            description="A question about the image; repeat the field for more.",
            examples=[["what is this?", "where is it?"]],
        ),
    ]


class MatchFields(BaseModel, extra="forbid"):
    text: Annotated[
        Texts,
        Field(description="A text that may fit the image; repeat the field for more.", examples=[["a bird", "a dog"]]),
    ]


class ClassifyFields(BaseModel, extra="forbid"):
    label: Annotated[
        Texts,
        Field(description="A name of what the image may show; repeat the field for more.", examples=[["bird", "dog"]]),
    ]
    template: Annotated[list[str], Field(description="A text with {} in it, where a label stands.")] = list(TEMPLATES)


class EmbedFields(BaseModel, extra="forbid"):
    text: Annotated[
        list[str], Field(description="A text to embed; repeat the field for more.", examples=[["a dog on the beach"]])
    ] = []


class Text(BaseModel):
    text: str
    score: float


class Caption(BaseModel):
    """What the image shows, or the answer to the question about it; `captions` has all, best first."""

    caption: str
    captions: list[Text]


class Captions(BaseModel):
    """A caption for each file, or null and what is wrong with it."""

    captions: list[str | None]
    errors: list[str | None]


class AnswerText(Text):
    question: str


class Answers(BaseModel):
    """The answer to the first question; `answers` has all."""

    answer: str
    answers: list[AnswerText]


class TextMatch(BaseModel):
    text: str
    itm: float | None
    itc: float


class Matches(BaseModel):
    matches: list[TextMatch]


class Label(BaseModel):
    label: str
    probability: float


class Labels(BaseModel):
    """Labels, most probable first; the probabilities add up to 1."""

    label: str
    labels: list[Label]


class Embeddings(BaseModel):
    """Unit vectors: several for each image, one for each text."""

    images: list[list[list[float]]]
    texts: list[list[float]]


def form_of(
    fields: type[BaseModel], files: str, urls: bool, *, least: int = 1, query: Sequence[str] = ()
) -> dict[str, Any]:
    """The request of an endpoint for OpenAPI: a form of files and fields.

    Args:
        files: the name of the field of files; "file" is one.
        urls: whether images are fetched from the web.
        query: fields that may stand in the address, too.
    """
    schema = fields.model_json_schema()
    picture = {"type": "string", "format": "binary", "description": "An image: JPEG, PNG, WebP, GIF, BMP or TIFF."}
    several = {"type": "array", "items": picture, "minItems": least}
    own = {name: _without_null(field) for name, field in schema.get("properties", {}).items()}
    properties = {files: picture if files == "file" else several, **own}
    if urls:
        address: dict[str, Any] = {"type": "string", "description": "The web address of an image, instead of a file."}
        address["examples"] = ["https://images.example.org/photo.jpg"]
        properties["url"] = address if files == "file" else {"type": "array", "items": address}
    required = [*([files] if least and not urls else []), *schema.get("required", [])]
    body = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    found: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}
    if query:
        found["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in query
        ]
    return found


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A field of a form: it is there or it is not, and is never null."""
    if "anyOf" not in field:
        return field
    (kind,) = (one for one in field["anyOf"] if one != {"type": "null"})
    return {**{name: value for name, value in field.items() if name not in ("anyOf", "default")}, **kind}


def native_routes(service: Service) -> APIRouter:
    """The endpoints of a service."""
    router = APIRouter()
    model, limits, urls = service.model, service.limits, bool(service.urls.hosts)

    async def read(
        request: Request, fields: type[Fields], ability: Ability, files: str, least: int = 1
    ) -> tuple[list[Source], Fields]:
        require(model, ability)
        form = await read_form(request, limits)
        uploads = [*form.files, *(source_of(url, "url") for url in form.fields.pop("url", []))]
        if len(uploads) < least or (files == "file" and len(uploads) > 1):
            wanted = "one image in the field file" if files == "file" else "at least one image in the field files"
            raise Refusal(422, f"the form has {len(uploads)} images: give {wanted}", "files_missing", param=files)
        return uploads, _fields(fields, form, limits.texts)

    @router.post(
        "/caption", response_model=Caption, openapi_extra=form_of(CaptionFields, "file", urls, query=["question"])
    )
    async def caption(request: Request) -> Caption:
        """Describe an image, or answer a question about it."""
        (upload,), fields = await read(request, CaptionFields, "caption", "file")
        options = fields.text_options()
        if fields.question is not None:
            job = write_job(model, limits, "ask", options, texts=fields.num_captions)
            prompt = _question(service, fields.question)
        else:
            job = write_job(model, limits, "caption", options, texts=fields.num_captions)
            own = model.parts.prompts.caption
            prompt = own if fields.prompt is None else check_text(limits, "prompt", fields.prompt)
        with service.visit(request, 1) as visit:
            image = await visit.read_one(upload)
            written: Written
            (written,) = await visit.run(job, [Prompted(image, (prompt,))])
        texts = [Text(text=one.text, score=one.score) for one in written.texts]
        return Caption(caption=texts[0].text, captions=texts)

    @router.post(
        "/batch_caption",
        response_model=Captions,
        openapi_extra=form_of(CaptionFields, "files", urls, query=["question"]),
    )
    async def batch_caption(request: Request) -> Captions:
        """Describe several images, or answer one question about each; a damaged file costs the others nothing."""
        uploads, fields = await read(request, CaptionFields, "caption", "files")
        ability: Ability = "caption" if fields.question is None else "ask"
        job = write_job(model, limits, ability, fields.text_options())
        if fields.question is not None:
            prompt = _question(service, fields.question)
        else:
            own = model.parts.prompts.caption
            prompt = own if fields.prompt is None else check_text(limits, "prompt", fields.prompt)
        with service.visit(request, len(uploads)) as visit:
            images = await visit.read(uploads)
            good = [Prompted(image, (prompt,)) for image in images if not isinstance(image, Exception)]
            if not good:
                raise next(image for image in images if isinstance(image, Exception))
            found = iter(await visit.run(job, good))
        captions: list[str | None] = []
        errors: list[str | None] = []
        for image in images:
            captions.append(None if isinstance(image, Exception) else next(found).texts[0].text)
            errors.append(told(image) if isinstance(image, Exception) else None)
        return Captions(captions=captions, errors=errors)

    @router.post("/ask", response_model=Answers, openapi_extra=form_of(AskFields, "file", urls, query=["question"]))
    async def ask(request: Request) -> Answers:
        """Answer questions about an image, which is encoded once for all of them."""
        (upload,), fields = await read(request, AskFields, "ask", "file")
        job = write_job(model, limits, "ask", fields.text_options())
        prompts = [_question(service, question) for question in fields.question]
        with service.visit(request, 1) as visit:
            image = await visit.read_one(upload)
            found = await visit.run(job, [Prompted(image, (prompt,)) for prompt in prompts])
        answers = [
            AnswerText(question=question, text=one.texts[0].text, score=one.texts[0].score)
            for question, one in zip(fields.question, found, strict=True)
        ]
        return Answers(answer=answers[0].text, answers=answers)

    @router.post("/match", response_model=Matches, openapi_extra=form_of(MatchFields, "file", urls))
    async def match(request: Request) -> Matches:
        """How well texts fit an image: the probability that both belong together (itm), and a cosine (itc)."""
        (upload,), fields = await read(request, MatchFields, "match", "file")
        texts = tuple(check_text(limits, "text", text) for text in fields.text)
        with service.visit(request, 1) as visit:
            (found,) = await visit.run(MatchTexts(texts), [await visit.read_one(upload)])
        return Matches(matches=[TextMatch(text=one.text, itm=one.itm, itc=one.itc) for one in found])

    @router.post("/classify", response_model=Labels, openapi_extra=form_of(ClassifyFields, "file", urls))
    async def classify(request: Request) -> Labels:
        """Choose among labels."""
        (upload,), fields = await read(request, ClassifyFields, "classify", "file")
        for text in (*fields.label, *fields.template):
            check_text(limits, "label", text)
        count = len(fields.label) * len(fields.template)
        if count > limits.label_texts:
            what = f"{len(fields.label)} labels in {len(fields.template)} templates are {count} texts"
            raise over_limit(422, what, "label_texts", limits.label_texts, "template")
        job = Classify(tuple(fields.label), tuple(fields.template))
        with service.visit(request, 1) as visit:
            (found,) = await visit.run(job, [await visit.read_one(upload)])
        labels = [Label(label=one.label, probability=one.probability) for one in found]
        return Labels(label=labels[0].label, labels=labels)

    @router.post("/embed", response_model=Embeddings, openapi_extra=form_of(EmbedFields, "files", urls, least=0))
    async def embed(request: Request) -> Embeddings:
        """Unit vectors of images and texts, which can be compared."""
        uploads, fields = await read(request, EmbedFields, "embed", "files", least=0)
        texts = [check_text(limits, "text", text) for text in fields.text]
        if not uploads and not texts:
            raise Refusal(422, "there is nothing to embed: give files, or texts", "nothing", param="files")
        with service.visit(request, len(uploads)) as visit:
            images = await visit.read(uploads) if uploads else []
            for image in images:
                if isinstance(image, Exception):
                    raise image
            vectors = await visit.run(EmbedImages(), images) if images else []
            words = await visit.run(EmbedTexts(), texts) if texts else []
        return Embeddings(images=vectors, texts=words)

    return router


def told(error: Exception) -> str:
    """What is wrong with one of several images."""
    return str(error.detail) if isinstance(error, Refusal) else str(error)


def _question(service: Service, question: str) -> str:
    writer = service.model.components.writer
    assert writer is not None
    return writer.question(check_text(service.limits, "question", question))


def _fields(kind: type[Fields], form: Form, texts: int) -> Fields:
    """The fields of a form, checked. Raises a Refusal that names the first that is wrong."""
    lists = {name for name, field in kind.model_fields.items() if "list" in str(field.annotation)}
    given: dict[str, Any] = {name: own if name in lists else own[-1] for name, own in form.fields.items()}
    for name in lists & given.keys():
        if len(given[name]) > texts:
            raise over_limit(422, f"the field {name} is there {len(given[name])} times", "texts", texts, name)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise wrong_field(error.errors()[0], kind) from None


def wrong_field(problem: Any, kind: type[BaseModel] | None = None) -> Refusal:
    """A refusal that names the field, and what it should be.

    Args:
        kind: what the fields are of, where others are refused.
    """
    if problem["type"] == "json_invalid":
        return unreadable()
    if isinstance(problem.get("input"), bytes):
        return Refusal(
            415,
            "the body of the request is not said to be JSON: send the header 'Content-Type: application/json'",
            "no_json",
        )
    loc = problem["loc"][1:] if kind is None else problem["loc"]
    # Without the names of the types of a field that may be of several.
    places = [str(part) for part in loc if not UNION_TYPE.fullmatch(str(part))]
    name = ".".join(places) or "of the request"
    if problem["type"] == "extra_forbidden" and kind is not None:
        return Refusal(
            422, f"there is no field {name}: use {', '.join(kind.model_fields)}", "unknown_field", param=name
        )
    if problem["type"] == "missing":
        return Refusal(422, f"the field {name} is missing: give it", "missing_field", param=name)
    value = problem.get("input")
    given = (value if isinstance(value, str) else reprlib.repr(value))[:100]  # which may have millions of items
    return Refusal(422, f"the field {name} is {given!r}: {problem['msg'].lower()}", "wrong_field", param=name)
