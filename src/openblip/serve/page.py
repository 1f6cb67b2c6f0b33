"""The web page of a server, by Gradio: what can be seen and pressed. `openblip.serve.page_work` does the work."""

from __future__ import annotations

import asyncio
import functools
import html
import inspect
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

import openblip
from openblip.errors import OpenBlipError, OptionError
from openblip.models.abilities import Ability
from openblip.serve.errors import Refusal, refusal_of
from openblip.serve.observed import log_failure
from openblip.serve.page_visitors import Sessions, Visited
from openblip.serve.page_work import PageWork, told, write_csv

NEEDED = 'the page needs more packages: pip install "openblip[serve,web]"'
PHOTOS = Path(openblip.__file__).parents[2] / "examples"
"""Photos to try, which lie beside the package's source; an installed package has none."""
CREDIT = (
    "Example photos: MS COCO, [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), by photographers on Flickr"
)
KEPT_SECONDS = (600, 3600)
"""How often files that the page received and made are looked through, and after how long they are deleted."""
STYLE = """
footer { display: none !important; }
.credit p, .credit a { font-size: 0.75rem; color: var(--body-text-color); opacity: 0.85; }
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
h1 { margin-bottom: 0; }
.result table { font-family: var(--font); table-layout: fixed; width: 100%; }
.result td, .result th { font-family: var(--font); overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .halves { flex-direction: column !important; flex-wrap: nowrap !important; }
  .halves > * { flex: none !important; width: 100%; min-width: 0 !important; }
  #examples .gallery { flex-wrap: nowrap; overflow-x: auto; max-width: calc(100vw - 4rem); padding-bottom: 0.5rem; }
  #examples .gallery > * { flex: none; }
}
"""


def import_gradio() -> Any:
    """Gradio, which takes seconds and 150 MB; it asks nobody for anything.

    Raises:
        OptionError: it is not installed.
    """
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_MCP_SERVER", "GRADIO_SSR_MODE"):
        os.environ[name] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("openblip"):
            raise
        raise OptionError(NEEDED) from None
    return gradio


def mount_page(app: FastAPI, work: PageWork) -> None:
    """Put the page at "/" of an application, behind everything that it has; files of the page go when the process ends.

    Raises:
        OptionError: Gradio is not installed.
    """
    gr = import_gradio()
    folder = tempfile.TemporaryDirectory(prefix="openblip-page-")
    app.state.page_folder = folder  # deleted with it
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    limits = work.service.limits
    sessions = Sessions()
    page = make_page(work, sessions)
    page.queue(api_open=False, max_size=limits.queue, default_concurrency_limit=limits.queue)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=limits.file_bytes,
        pwa=False,
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css=STYLE,
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = Visited(mounted.app, sessions, folder.name, work.service.drained)


def make_page(work: PageWork, sessions: Sessions) -> Any:
    """The page: a tab for each thing that the model can do."""
    gr = import_gradio()
    shown = functools.partial(_shown, gr, sessions)
    can = work.abilities

    title = f"OpenBLIP: {work.service.name}"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=KEPT_SECONDS) as page:
        gr.Markdown(f"# {html.escape(title)}")
        with gr.Tabs():
            if tabs := [(name, fill) for ability, name, fill in PHOTO_TABS if ability in can]:
                with gr.Tab("One photo"), gr.Row(elem_classes="halves"):
                    with gr.Column(scale=2, min_width=280):
                        photo = _photo(gr, "Photo", 320)
                        _examples(gr, photo)
                    with gr.Column(scale=3, min_width=280), gr.Tabs():
                        for name, fill in tabs:
                            with gr.Tab(name):
                                fill(gr, work, photo, shown)
            if "caption" in can:
                with gr.Tab("Many photos"):
                    _batch(gr, work, shown)
            if work.index is not None:
                with gr.Tab("Search"):
                    _search(gr, work, shown)
    return page


def _photo(gr: Any, label: str, height: int) -> Any:
    """A place for a photo. Its value is the file as it came: whether it can be read is for the service to say."""
    photo = gr.Image(label=label, sources=["upload", "clipboard"], height=height, buttons=[])
    # Not in a subclass, beside whose module Gradio writes a .pyi file.
    photo.preprocess = lambda payload: None if payload is None else payload.path
    return photo


def _examples(gr: Any, photo: Any) -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    if not photos:
        return
    gr.Examples(
        [str(path) for path in photos], photo, label="Or try one of these", elem_id="examples", cache_examples=False
    )
    sources = _sources(PHOTOS / "CREDITS.md")
    listed = ", ".join(
        f"[{sources[path.name]}]({_flickr(sources[path.name])})" for path in photos if path.name in sources
    )
    gr.Markdown(f"{CREDIT}: {listed}" if listed else CREDIT, elem_classes="credit")


def _caption(gr: Any, work: PageWork, photo: Any, shown: Any) -> None:
    begun = gr.Textbox(label="Beginning (optional)", placeholder="a photo of", max_lines=1)
    most = work.service.limits.captions
    count = gr.Slider(1, most, value=1, step=1, label="Captions") if most > 1 else gr.State(1)
    button = gr.Button("Caption", variant="primary")
    result = gr.Textbox(label="Caption", lines=2, interactive=False, buttons=["copy"])

    async def caption(path: str | None, prompt: str, captions: float) -> str:
        return "\n".join(await work.caption(path, prompt, int(captions)))

    gr.on([button.click, begun.submit], shown(caption), [photo, begun, count], result, api_name="caption")
    photo.change(None, None, result, js="() => ''")


def _ask(gr: Any, work: PageWork, photo: Any, shown: Any) -> None:
    question = gr.Textbox(label="Question", placeholder="What is in the photo?", max_lines=1)
    button = gr.Button("Ask", variant="primary")
    result = gr.Textbox(label="Answer", lines=2, interactive=False, buttons=["copy"])
    gr.on([button.click, question.submit], shown(work.ask), [photo, question], result, api_name="ask")
    photo.change(None, None, result, js="() => ''")


def _chat(gr: Any, work: PageWork, photo: Any, shown: Any) -> None:
    talk = gr.Chatbot(label="Conversation about the photo", height=340, render_markdown=False, buttons=[])
    said = gr.Textbox(label="Your message", placeholder="What is in the photo?", max_lines=1)
    with gr.Row():
        send = gr.Button("Send", variant="primary")
        clear = gr.Button("Start again")

    async def chat(path: str | None, question: str, history: list[Any]) -> AsyncGenerator[Any, None]:
        asked = [*history, {"role": "user", "content": question}]
        try:
            async for text in work.answer(path, question, turns_of(history)):
                yield [*asked, {"role": "assistant", "content": text}], ""
        except (Refusal, OpenBlipError, TimeoutError):
            yield history, question  # nothing of it is lost
            raise

    gr.on([send.click, said.submit], shown(chat), [photo, said, talk], [talk, said], api_name="chat")
    for event in (photo.change, clear.click):
        event(None, None, talk, js="() => []")


def _match(gr: Any, work: PageWork, photo: Any, shown: Any) -> None:
    texts = gr.Textbox(label="Texts, one a line", placeholder="a dog\na birthday cake", lines=3)
    button = gr.Button("Match", variant="primary")
    result = _table(gr, {"Text": "50%", "Probability": "25%", "Cosine": "25%"}, "How well they fit, best first")
    where = gr.Image(label="Where the best one is seen", interactive=False, visible=False, buttons=["download"])

    async def match(path: str | None, lines: str) -> tuple[list[list[str]], Any]:
        found, picture = await work.match(path, lines.splitlines())
        rows = [[one.text, "" if one.itm is None else f"{one.itm:.3f}", f"{one.itc:.3f}"] for one in found]
        label = f"Where “{found[0].text}” is seen: red most, blue least"
        return rows, gr.Image(picture, visible=picture is not None, label=label)

    button.click(shown(match), [photo, texts], [result, where], api_name="match")
    photo.change(None, None, where, js="() => null")


def _classify(gr: Any, work: PageWork, photo: Any, shown: Any) -> None:
    labels = gr.Textbox(label="Labels, one a line", placeholder="dog\ncat\nbird", lines=3)
    button = gr.Button("Classify", variant="primary")
    result = _table(gr, {"Label": "70%", "Probability": "30%"}, "Most probable first")

    async def classify(path: str | None, lines: str) -> list[list[str]]:
        return [[one.label, f"{one.probability:.3f}"] for one in await work.classify(path, lines.splitlines())]

    button.click(shown(classify), [photo, labels], result, api_name="classify")
    photo.change(None, None, result, js="() => null")


PHOTO_TABS: tuple[tuple[Ability, str, Callable[[Any, PageWork, Any, Any], None]], ...] = (
    ("caption", "Caption", _caption),
    ("ask", "Ask", _ask),
    ("chat", "Chat", _chat),
    ("match", "Match", _match),
    ("classify", "Classify", _classify),
)
"""What is done with one photo by models of an ability."""


def _table(gr: Any, widths: dict[str, str], label: str, max_height: int = 500) -> Any:
    """A table of results: its columns and their widths."""
    return gr.Dataframe(
        headers=list(widths),
        datatype=["str"] * len(widths),
        column_widths=list(widths.values()),
        elem_classes="result",
        label=label,
        interactive=False,
        wrap=True,
        buttons=[],
        max_height=max_height,
    )


def _batch(gr: Any, work: PageWork, shown: Any) -> None:
    files = gr.File(label="Photos", file_count="multiple", file_types=["image"], height=180)
    question = gr.Textbox(
        label="Question (optional)",
        info="Answered for each photo, instead of a caption.",
        placeholder="how many people are there?",
        max_lines=1,
        visible="ask" in work.abilities,
    )
    button = gr.Button("Describe all", variant="primary")
    progress = gr.Markdown("")
    result = _table(gr, {"Photo": "30%", "Text": "45%", "Error": "25%"}, "Results", max_height=420)
    download = gr.DownloadButton("Download as CSV", visible=False)

    async def describe(paths: list[str] | None, asked: str) -> AsyncGenerator[Any, None]:
        count = len(paths or [])
        hidden = gr.DownloadButton(visible=False)
        done = []
        async for done in work.describe(
            paths or [], asked, lambda seconds: gr.Info(f"The server is busy: the batch waits {seconds} s.")
        ):
            table = [[row.name, row.text or "", row.error or ""] for row in done]
            yield f"{len(done)} of {count} photos are done.", table, hidden
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "captions.csv")
            write_csv(path, done)
            yield f"All {count} photos are done.", table, gr.DownloadButton(value=str(path), visible=True)

    button.click(shown(describe), [files, question], [progress, result, download], api_name="batch")


def _search(gr: Any, work: PageWork, shown: Any) -> None:
    with gr.Row():
        words = gr.Textbox(label="Words", placeholder="a dog on the beach", max_lines=1, scale=3)
        top = gr.Slider(1, 50, value=12, step=1, label="Photos at most", scale=2)
    with gr.Accordion("Or search with a photo", open=False):
        like = _photo(gr, "Photos like this one", 220)
    button = gr.Button("Search", variant="primary")
    result = gr.Gallery(label="Photos", columns=4, height="auto", object_fit="contain", buttons=[], interactive=False)

    async def search(text: str, path: str | None, count: float) -> list[tuple[Any, str]]:
        found = await work.search(text, path, int(count))
        if not found:
            gr.Info("No photo fits.")
        return found

    gr.on([button.click, words.submit], shown(search), [words, like, top], result, api_name="search")


def turns_of(history: Sequence[Any]) -> list[tuple[str, str]]:
    """Questions and answers of a conversation as Gradio tells it: contents are texts, or lists of parts."""
    turns: list[tuple[str, str]] = []
    asked = ""
    for message in history:
        content = message["content"]
        parts = [content] if isinstance(content, str) else content
        text = " ".join(part if isinstance(part, str) else str(part.get("text", "")) for part in parts)
        if message["role"] == "user":
            asked = text
        else:
            turns.append((asked, text))
    return turns


def _shown(gr: Any, sessions: Sessions, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, whose errors are sentences on the page; those of the server's own go to its log. When the visitor
    leaves, it ends.
    """

    def sentence(error: BaseException) -> Exception:
        if isinstance(error, asyncio.CancelledError):
            words = "the page was closed"
        elif isinstance(error, TimeoutError):
            words = "the answer took too long: try again"
        else:
            assert isinstance(error, Exception)
            refusal = refusal_of(error)
            if refusal.status_code == 500:
                log_failure(error)
            words = told(refusal)
        text = html.escape(words[:1].upper() + words[1:] + ".")
        made: Exception = gr.Error(text, title="That did not work", print_exception=False)
        return made

    def session() -> str | None:
        request = gr.context.LocalContext.request.get(None)
        return None if request is None else request.session_hash

    if inspect.isasyncgenfunction(work):

        @functools.wraps(work)
        async def stream(*given: Any) -> AsyncGenerator[Any, None]:
            try:
                async for one in sessions.stream(session(), work(*given)):
                    yield one
            except (Exception, asyncio.CancelledError) as error:
                raise sentence(error) from None

        return stream

    @functools.wraps(work)
    async def once(*given: Any) -> Any:
        try:
            return await sessions.run(session(), work(*given))
        except (Exception, asyncio.CancelledError) as error:
            raise sentence(error) from None

    return once


def _sources(path: Path) -> dict[str, str]:
    """The Flickr number of each example photo, of the table of credits."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        found.update({name: number for name, number in zip(cells[::2], cells[1::2], strict=False) if number.isdigit()})
    return found


def _flickr(number: str) -> str:
    return f"https://www.flickr.com/photo.gne?id={number}"
