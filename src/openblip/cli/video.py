"""`openblip video`: what is seen when in a video, on the screen or as subtitles, JSON or a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.interrupts import INTERRUPTED, Ended
from openblip.cli.progress import show_progress
from openblip.cli.report import SOME_FAILED, complain, print_line, say
from openblip.errors import OpenBlipError, OptionError
from openblip.generation.options import TextOptions

if TYPE_CHECKING:
    from openblip.jobs.video.segment import Segment

EXAMPLES = """[bold]Examples[/bold]
  openblip video clip.mp4
  openblip video clip.mp4 --every 5s --output clip.srt
  openblip video clip.mp4 --scenes -o clip.html -o clip.json
  openblip video clip.mp4 --ask "is it day or night?" --find colors,textures -o clip.vtt"""

FRAMES_PANEL = "Images"
UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
INTERVAL = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|m|h|)")


@args.with_text_options
def video(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A video file: MP4, MKV, WebM, MOV, AVI, GIF, ...", show_default=False),
    ],
    every: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How often the video is looked at: 1s, 500ms, 2min. What looks the same is described once. "
            "Default: 1s.",
            rich_help_panel=FRAMES_PANEL,
            show_default=False,
        ),
    ] = None,
    scenes: Annotated[
        bool,
        typer.Option("--scenes", help="Find the scenes, and describe each once.", rich_help_panel=FRAMES_PANEL),
    ] = False,
    ask: Annotated[
        list[str] | None,
        typer.Option("--ask", metavar="QUESTION", help="Ask this about each image; repeatable.", show_default=False),
    ] = None,
    no_captions: Annotated[bool, typer.Option("--no-captions", help="Only answer the questions of --ask.")] = False,
    find: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LISTS",
            help="Find the words of these lists in the captions: colors, textures, materials, shapes, or a file with a "
            "word a line.",
            show_default=False,
        ),
    ] = None,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    prompt: args.Prompt = None,
    *,
    options: TextOptions,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to a new file: subtitles (.srt, .vtt), .json, or a page with pictures (.html); repeatable.",
            rich_help_panel=args.OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Describe a video: print one line for each part, with its times and what is seen; or write subtitles or a page."""
    import openblip
    from openblip.images.video_decode import clock_time
    from openblip.jobs.video.description import VideoQuestions
    from openblip.jobs.video.run import describe_video
    from openblip.jobs.words import load_word_lists

    if scenes and every is not None:
        raise OptionError("--every and --scenes are two ways to choose images: give one of them")
    questions = VideoQuestions(
        every=None if scenes else _seconds("1s" if every is None else every),
        captions=not no_captions,
        prompt=prompt,
        questions=tuple(ask or ()),
        word_lists=load_word_lists(find) if find else (),
        batch_size=batch_size,
        options=options,
    )
    outputs = [path.expanduser().absolute() for path in output or ()]
    reached = 0.0

    def load() -> Any:
        return openblip.load(model, device=device, dtype=dtype, adapter=adapter, tokenizer=tokenizer)

    def show(segment: Segment) -> None:
        nonlocal reached
        reached = segment.end
        if not outputs:
            for line in segment_lines(segment, questions.digits):
                print_line(line)

    try:
        with show_progress("seconds of video", beside_results=not outputs) as progress:
            settings = args.settings_of(context, {"file", "output"}) if outputs else {}
            found = describe_video(
                file, load, questions, outputs, tell=say, progress=progress, closed=show, settings=settings
            )
    except (KeyboardInterrupt, Ended) as stopped:
        say(f"stopped at {clock_time(reached, questions.digits)}")
        raise typer.Exit(getattr(stopped, "code", INTERRUPTED)) from stopped
    for path in outputs:
        parts = "1 part" if len(found.segments) == 1 else f"{len(found.segments):,} parts"
        print_line(f"{path}: {parts}, up to {clock_time(found.end, questions.digits)}")
    if found.fault is not None:
        complain(OpenBlipError(found.fault))
        raise typer.Exit(SOME_FAILED)


def segment_lines(segment: Segment, digits: int) -> list[str]:
    """A segment as it is shown: its times and its first text in one line, further texts under it."""
    from openblip.images.video_decode import clock_time
    from openblip.jobs.video.subtitles import shown_lines

    times = f"{clock_time(segment.start, digits)}-{clock_time(segment.end, digits)}"
    first, *rest = shown_lines(segment) or [""]
    found = [f"{name}: {', '.join(words)}" for name, words in segment.found.items() if words]
    return [f"{times}  {first}".rstrip(), *(" " * (len(times) + 2) + line for line in [*rest, *found])]


def _seconds(text: str) -> float:
    """Seconds of a time such as 1s, 500ms or 2min. Raises OptionError."""
    match = INTERVAL.fullmatch(text.strip().lower())
    if match is None:
        raise OptionError(f"--every is {text!r}: give a time such as 1s, 500ms or 2min")
    return float(match[1]) * UNITS[match[2]]
