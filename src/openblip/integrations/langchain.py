"""Tools for LangChain's agents: caption an image, answer questions about it, compare it with texts.

>>> from langchain.agents import create_agent
>>> from openblip.integrations.langchain import image_tools
>>> agent = create_agent("openai:gpt-5", tools=image_tools(root="photos"))
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

try:
    from langchain_core.tools import BaseTool, ToolException
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
except ImportError as error:
    raise ImportError(
        'the tools for LangChain need langchain-core, and Python 3.11: pip install "openblip[langchain]"'
    ) from error

from openblip.errors import OpenBlipError, OptionError
from openblip.images.references import ImageReferences, name_of
from openblip.models.model import Model
from openblip.models.shared import SharedModel, shared
from openblip.results import Answered, Captioned, Matched
from openblip.web.policy import UrlPolicy

SEPARATOR = "|"
IMAGE = "The image: a path, an http(s) or data: URL, or the image file as base64."


class CaptionInput(BaseModel):
    """What `ImageCaptionTool` takes."""

    image: str = Field(description=IMAGE)


class QuestionInput(BaseModel):
    """What `VisualQATool` takes."""

    image: str = Field(description=IMAGE)
    question: str = Field(description="One question about what the image shows.", min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        """Take "path|question", too, as tools of one text do."""
        if isinstance(given, dict) and given.get("question") is None and isinstance(given.get("image"), str):
            image, separator, question = given["image"].partition(SEPARATOR)
            if separator:
                return {**given, "image": image.strip(), "question": question.strip()}
        return given


class MatchInput(BaseModel):
    """What `ImageMatchTool` takes."""

    image: str = Field(description=IMAGE)
    texts: list[str] = Field(description="Texts that may fit the image, such as a caption each.", min_length=1)


def _told(error: ValidationError) -> str:
    problems = (f"{'.'.join(map(str, one['loc'])) or 'the input'}: {one['msg']}" for one in error.errors()[:3])
    return f"the arguments are wrong ({'; '.join(problems)}): call the tool again with what its schema asks for"


class ImageTool(BaseTool):
    """What the tools have in common.

    Attributes:
        model: a loaded model, or what `openblip.load` takes. Tools of the same name share one model, which is loaded
            when the first of them is called.
        device, dtype, adapter: as `openblip.load` takes them.
        root: the folder that images have to lie in; None: any file that this process can read.
        paths: whether paths may be given at all.
        urls: from which servers images are fetched; none by default.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: Any = "mini"
    device: str | None = None
    dtype: str | None = None
    adapter: str | None = None
    root: str | os.PathLike[str] | None = None
    paths: bool = True
    urls: UrlPolicy = Field(default_factory=UrlPolicy)
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: bool | str | Callable[[ToolException], Any] | None = True
    handle_validation_error: bool | str | Callable[[Any], str] | None = _told
    _shared: SharedModel = PrivateAttr()
    _images: ImageReferences = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check what was given. Raises ValueError for a folder that is not there, or a model that is none."""
        super().model_post_init(context)
        self._images = ImageReferences(self.root, self.paths, self.urls)
        if isinstance(self.model, str | Path):
            self._shared = shared(str(self.model), self.device, self.dtype, self.adapter)
        elif isinstance(self.model, Model):
            self._shared = SharedModel(self.model)
        else:
            raise OptionError(f"the model is {self.model!r}: give what openblip.load returned, or a name")

    def _with_image(self, image: str, work: Callable[[Model, Any], tuple[str, Any]]) -> tuple[str, Any]:
        try:
            opened = self._images.load(image)
            with self._shared.use() as model:
                return work(model, opened)
        except OpenBlipError as error:
            raise ToolException(str(error)) from error


class ImageCaptionTool(ImageTool):
    """Describes an image: the text is the caption, the artifact an `openblip.Captioned`."""

    name: str = "image_caption"
    description: str = "Describe an image in one sentence."
    args_schema: Any = CaptionInput

    def _run(self, image: str) -> tuple[str, Captioned]:
        def work(model: Model, opened: Any) -> tuple[str, Captioned]:
            caption = model.caption(opened, details=True)
            return caption.text, Captioned(name_of(image), (caption,))

        return self._with_image(image, work)


class VisualQATool(ImageTool):
    """Answers a question about an image: the text is the answer, the artifact an `openblip.Answered`.

    Called with one text, it takes "path|question".
    """

    name: str = "visual_qa"
    description: str = "Answer a question about what an image shows."
    args_schema: Any = QuestionInput

    def _run(self, image: str, question: str | None = None) -> tuple[str, Answered]:
        if question is None:  # one text, which the schema has checked
            image, _, question = (part.strip() for part in image.partition(SEPARATOR))
        asked = question

        def work(model: Model, opened: Any) -> tuple[str, Answered]:
            answer = model.ask(opened, asked, details=True)
            return answer.text, Answered(name_of(image), (asked,), (answer,))

        return self._with_image(image, work)


class ImageMatchTool(ImageTool):
    """Says how well texts fit an image: a line for each, best first; the artifact is an `openblip.Matched`.

    The numbers are the probabilities that image and text belong together; of a model that compares by contrast alone
    (CLIP), cosines.
    """

    name: str = "image_match"
    description: str = "Say how well each of several texts fits an image; the best text comes first."
    args_schema: Any = MatchInput

    def _run(self, image: str, texts: list[str]) -> tuple[str, Matched]:
        def work(model: Model, opened: Any) -> tuple[str, Matched]:
            matches = tuple(model.match(opened, texts))
            scores = [match.itc if match.itm is None else match.itm for match in matches]
            order = sorted(range(len(scores)), key=lambda place: -scores[place])
            lines = (f"{scores[place]:.3f} {matches[place].text}" for place in order)
            return "\n".join(lines), Matched(name_of(image), matches)

        return self._with_image(image, work)


def image_tools(
    model: Model | str | Path = "mini",
    *,
    device: str | None = None,
    dtype: str | None = None,
    adapter: str | None = None,
    root: str | os.PathLike[str] | None = None,
    paths: bool = True,
    urls: UrlPolicy | None = None,
) -> list[BaseTool]:
    """The tools above, which share one model. Arguments as the attributes of `ImageTool`."""
    settings: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "adapter": adapter}
    settings |= {"root": root, "paths": paths, "urls": UrlPolicy() if urls is None else urls}
    return [tool(**settings) for tool in (ImageCaptionTool, VisualQATool, ImageMatchTool)]
