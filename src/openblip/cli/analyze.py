"""`openblip analyze`: ask a set of questions about each page of documents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.inputs import STDIN, find_inputs
from openblip.cli.progress import show_progress
from openblip.cli.report import SOME_FAILED, complain, print_line, say, shown_json
from openblip.errors import ImageError, OptionError
from openblip.generation.options import TextOptions

if TYPE_CHECKING:
    from openblip.analysis.pages import PageToRead
    from openblip.analysis.question_sets import QuestionSet

EXAMPLES = """[bold]Examples[/bold]
  openblip analyze invoice.jpg --set document
  openblip analyze report.pdf --set document --pages 1-3,7 -o report.html
  openblip analyze photos/ --set product -o products.json
  openblip analyze scan.tiff -q "who wrote this letter?"
  openblip analyze --sets
  openblip analyze --print-set document > my.yaml
  openblip analyze scan.pdf --set my.yaml --format markdown"""

PAGES_PANEL = "Pages"
NO_CONTENT = frozenset({"files", "output", "password", "sets", "print_set"})
"""Parameters that decide nothing of a report but its pages; the password stays out of files."""


def _about_pages(metavar: str | None, explained: str, **more: Any) -> Any:
    return typer.Option(metavar=metavar, help=explained, rich_help_panel=PAGES_PANEL, show_default=False, **more)


def _show_sets() -> None:
    from openblip.analysis.question_sets import ALL, built_in_sets

    for one in built_in_sets().values():
        print_line(f"{one.name}: {one.description}")
        for question in one.questions:
            choices = f" [{' / '.join(question.choices)}]" if question.choices else ""
            pages = f" ({question.pages} page)" if question.pages != ALL else ""
            print_line(f"  - {question.text}{choices}{pages}")
        if one.caption:
            print_line("  and a caption")
        if one.find:
            print_line(f"  and words for {', '.join(words.name for words in one.find)}")
        if one.warning:
            print_line(f"  WARNING: {one.warning}")
        print_line("")


@args.with_text_options
def analyze(
    context: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="PDFs, TIFFs of several pages, images, folders of them, quoted patterns or web addresses. With -, a "
            "document from standard input.",
            show_default=False,
        ),
    ] = None,
    set_name: Annotated[
        str | None,
        typer.Option(
            "--set",
            "-s",
            metavar="NAME",
            help="What to ask: document, xray, ct, mri or product, or a YAML or JSON file of your own.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", metavar="TEXT", help="Ask this, too; repeat it for more.", show_default=False),
    ] = None,
    caption: Annotated[
        bool | None,
        typer.Option("--caption/--no-caption", help="Caption each page. Default: as the set says.", show_default=False),
    ] = None,
    sets: Annotated[bool, typer.Option("--sets", help="List the sets and their questions.")] = False,
    print_set: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Print a set as a YAML file, to be changed.", show_default=False),
    ] = None,
    pages: Annotated[str | None, _about_pages("PAGES", "Only these pages, such as 1-3,7 or 10-.")] = None,
    dpi: Annotated[
        float, typer.Option(metavar="N", help="Pixels an inch of the pages of PDFs.", rich_help_panel=PAGES_PANEL)
    ] = 150,
    password: Annotated[
        str | None, _about_pages("TEXT", "The password of encrypted PDFs.", envvar="OPENBLIP_PDF_PASSWORD")
    ] = None,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    *,
    options: TextOptions,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="text, json, markdown or html. Default: by the name of --output, else text.",
            rich_help_panel=args.OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    thumbnails: Annotated[
        bool,
        typer.Option("--thumbnails/--no-thumbnails", help="Show the pages in HTML.", rich_help_panel=args.OUTPUT_PANEL),
    ] = True,
    output: args.Output = None,
) -> None:
    """Ask a set of questions about each page of PDFs, TIFFs and images; each page is encoded once for all of them.

    A report as text, JSON, Markdown or one HTML page with pictures of the pages. Options of generation are for answers;
    captions are as the model usually writes them.
    """
    from openblip.analysis.analyze import analyze_pages
    from openblip.analysis.kept_report import command_of, write_to_file
    from openblip.analysis.pages import plan_pages
    from openblip.analysis.reports import format_of, heading_of, write_report
    from openblip.analysis.set_files import find_question_set
    from openblip.images.documents import checked_dpi

    if sets:
        _show_sets()
        return
    if print_set is not None:
        print_line(find_question_set(print_set).to_yaml(), end="")
        return
    asked = _asked(set_name, question or (), caption)
    chosen = "text" if form is None and output is None else format_of(output or Path(), form)
    checked_dpi(dpi)
    plan = plan_pages(_documents(files or ()), pages, password)
    if all(page.index is None for page in plan):
        for page in plan[:-1]:
            complain(_error_of(page))
        raise _error_of(plan[-1])
    failed = 0

    def find(start: int) -> Iterator[dict[str, Any]]:
        """The pages from one on, with what is wrong with them told."""
        nonlocal failed
        loaded = args.load_model(context)
        found = analyze_pages(loaded, plan[start:], asked, dpi, batch_size, thumbnails and chosen == "html", options)
        for page in found:
            if page.error is not None:
                failed += 1
                if chosen != "text" or output is not None:
                    complain(page.error)
            yield page.to_dict()

    heading, width = heading_of(asked, model), shutil.get_terminal_size((100, 24)).columns
    if output is None:
        for piece in write_report(chosen, heading, find(0), width):
            print_line(shown_json(piece) if chosen == "json" else piece, end="")
    else:
        command = command_of(args.settings_of(context, NO_CONTENT), asked, plan)
        with show_progress("pages") as progress:
            failed = write_to_file(
                output, command, find, lambda records: write_report(chosen, heading, records), batch_size, say, progress
            )
        errors = f", {failed:,} with an error" if failed else ""
        print_line(f"{output}: {len(plan):,} {'page' if len(plan) == 1 else 'pages'}{errors}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def _asked(set_name: str | None, questions: Sequence[str], caption: bool | None) -> QuestionSet:
    """The set of the command line, with its own questions behind those of the set."""
    from dataclasses import replace

    from openblip.analysis.question_sets import Question, ask_about, built_in_sets
    from openblip.analysis.set_files import find_question_set

    if set_name is None and not questions:
        known = ", ".join(built_in_sets())
        raise OptionError(f"what is asked? Give --set with one of {known} or a file of your own, or --question")
    asked = ask_about(questions) if set_name is None else find_question_set(set_name)
    if set_name is not None and questions:
        asked = replace(asked, questions=(*asked.questions, *map(Question, questions)))
    return asked if caption is None else replace(asked, caption=caption)


def _documents(files: Sequence[str]) -> list[Any]:
    from openblip.images.documents import find_documents

    if not files:
        raise OptionError("give the name of a file, as in openblip analyze scan.pdf --set document")
    found: list[Any] = []
    for text in files:
        found += find_inputs([STDIN]) if text == STDIN else []
    return found + find_documents([text for text in files if text != STDIN])


def _error_of(page: PageToRead) -> ImageError:
    assert page.error is not None
    return page.error
