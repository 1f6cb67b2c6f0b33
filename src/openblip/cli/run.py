"""`openblip run`: caption, ask, match, embed or classify all rows of a table, or all images of a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openblip.cli import arguments as args
from openblip.cli import sidecars as beside
from openblip.cli.classify import Label, LabelFile, Templates, all_labels
from openblip.cli.interrupts import stoppable
from openblip.cli.job_options import CLUSTER_OPTIONS, NO_CONTENT, Column, Find, Replace, about_words, with_job_options
from openblip.cli.progress import show_progress
from openblip.cli.report import failure_code, print_line, say
from openblip.errors import OptionError
from openblip.generation.options import TextOptions

if TYPE_CHECKING:
    from openblip.jobs.job import Compute
    from openblip.jobs.verbs import Verb
    from openblip.jobs.wording import Wording

EXAMPLES = """[bold]Examples[/bold]
  openblip run caption photos/ -o captions.csv
  openblip run ask products.csv --question "what color is it?" -o colors.csv

[bold]Never loses work[/bold]
  Stop it, kill it, pull the plug: the same command goes on, and the file has the same bytes in the end."""
CAPTION_EXAMPLES = """[bold]Examples[/bold]
  openblip run caption photos/ -o captions.csv
  openblip run caption products.csv -o captioned.csv --prompt "a photo of a {category}"
  openblip run caption 'photos/*.jpg' -o captions.jsonl --num-captions 3
  openblip run caption products.csv -o found.csv --find colors,textures,materials
  openblip run caption photos/ -o animals.jsonl --find animals.txt --replace "puppy=dog"
  openblip run caption 'shards/{000..099}.tar' -o captions.parquet
  openblip run caption photos/ --sidecar txt
  openblip run caption photos/ --sidecar xmp --existing append --find colors
  openblip run caption photos.txt -o part3.csv --shard 3/16
  openblip run caption photos.csv -o captions.csv --engine ray --workers 8
  find photos -name '*.jpg' | openblip run caption - -o captions.csv"""
ASK_EXAMPLES = """[bold]Examples[/bold]
  openblip run ask photos/ --question "what animal is this?" -o animals.csv
  openblip run ask photos/ --question "is it day?" --question "how many people are there?" -o answers.csv
  openblip run ask products/ --question "what color is it?" -o colors.csv --find colors
  openblip run ask table.jsonl --question-column question -o answers.jsonl"""
MATCH_EXAMPLES = """[bold]Examples[/bold]
  openblip run match photos/ --text "a dog on a beach" -o scores.csv
  openblip run match photos/ --text "a dog" --text "a cat" -o scores.jsonl"""
EMBED_EXAMPLES = """[bold]Examples[/bold]
  openblip run embed photos/ -o vectors.jsonl"""
CLASSIFY_EXAMPLES = """[bold]Examples[/bold]
  openblip run classify photos/ --label indoors --label outdoors -o places.csv
  openblip run classify photos/ --labels labels.txt --template "a drawing of a {}" -o classes.csv"""

app = typer.Typer(
    help="Caption, ask, match, embed or classify all rows of a table or a folder; never loses work.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
)


@app.command(epilog=CAPTION_EXAMPLES)
@with_job_options
@args.with_text_options
def caption(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        args.about_text("TEXT", "The words that captions begin with; {column}, {folder} and {name} are the row's."),
    ] = None,
    num_captions: args.NumCaptions = 1,
    prefix: Annotated[
        str | None, args.about_text("TEXT", "Put before each caption; {column}, {folder} and {name} as in --prompt.")
    ] = None,
    suffix: Annotated[str | None, args.about_text("TEXT", "Put behind each caption.")] = None,
    find: Find = None,
    replace: Replace = None,
    tags: Annotated[
        bool,
        about_words(
            None, "Captions are tags with commas between them: write each once, those of --prefix first.", "--tags"
        ),
    ] = False,
    *,
    options: TextOptions,
    column: Column = None,
) -> None:
    """Caption images: a column `caption`, or lists of captions with --num-captions."""
    from openblip.jobs.templates import Template
    from openblip.jobs.verbs import Caption

    wording = _wording(find, replace, tags)
    verb = Caption(
        prompt=None if prompt is None else Template(prompt, "--prompt"),
        count=num_captions,
        prefix=None if prefix is None else Template(prefix, "--prefix"),
        suffix=None if suffix is None else Template(suffix, "--suffix"),
        column=column or "caption",
        options=options,
        wording=wording,
    )
    _run(context, verb, wording.settings)


@app.command(epilog=ASK_EXAMPLES)
@with_job_options
@args.with_text_options
def ask(
    context: typer.Context,
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            "-q",
            metavar="TEXT",
            help="A question about every image; repeat it for more, each with a column of its own. {column}, {folder} "
            "and {name} stand for the row's.",
            show_default=False,
        ),
    ] = None,
    question_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column that has the question of each row.", show_default=False),
    ] = None,
    find: Find = None,
    replace: Replace = None,
    *,
    options: TextOptions,
    column: Column = None,
) -> None:
    """Answer questions about images: a column `answer`, or with several questions a column for each."""
    from openblip.jobs.templates import Template
    from openblip.jobs.verbs import Ask

    questions = tuple(Template(text, "--question") for text in question or ())
    wording = _wording(find, replace)
    _run(context, Ask(questions, question_column, column or "answer", options, wording), wording.settings)


@app.command(epilog=MATCH_EXAMPLES)
@with_job_options
def match(
    context: typer.Context,
    text: Annotated[
        list[str], typer.Option("--text", "-t", metavar="TEXT", help="A text to compare; repeat it for more.")
    ],
) -> None:
    """Score how well texts fit each image: columns `itm` and `itc`.

    With several texts, both are lists in the order of the texts, and `best_text` is the text that fits best.
    """
    from openblip.jobs.verbs import Match

    _run(context, Match(tuple(text)))


@app.command(epilog=EMBED_EXAMPLES)
@with_job_options
def embed(
    context: typer.Context,
    column: Column = None,
) -> None:
    """Embed images: a column `embedding` with a list of unit vectors. For NumPy's format use openblip embed."""
    from openblip.jobs.verbs import Embed

    _run(context, Embed(column or "embedding"))


@app.command(epilog=CLASSIFY_EXAMPLES)
@with_job_options
def classify(
    context: typer.Context,
    label: Label = None,
    labels: LabelFile = None,
    template: Templates = None,
    column: Column = None,
) -> None:
    """Choose among labels: columns `label` and `probability`, which is the label's share among those that you give."""
    from openblip.jobs.verbs import Classify

    chosen = tuple(all_labels(label, labels))
    _run(context, Classify(chosen, tuple(template or ()), column or "label"), {"the labels": chosen})


def _run(context: typer.Context, verb: Verb, settings: dict[str, Any] | None = None) -> None:
    """Everything that is the same for all verbs."""
    from openblip.jobs.job import run_job
    from openblip.jobs.object_storage import StoredOutput, is_stored
    from openblip.jobs.plan import JobOptions, plan_job
    from openblip.jobs.supervisor import Supervisor

    given = context.params
    sidecars, shard = beside.read_sidecars(given), _shard(given["shard"])
    output = beside.output_of(given, shard)
    limit = given["limit"]
    if limit is not None and limit < 1:
        raise OptionError(f"--limit is {limit}: it must be at least 1")
    options = JobOptions(
        source=given["source"],
        output=output,
        verb=verb,
        settings=args.settings_of(context, NO_CONTENT) | {"run": verb.ability} | (settings or {}),
        loading={name: given[name] for name in ("device", "dtype", "adapter", "tokenizer")} | {"name": given["model"]},
        batch_size=given["batch_size"],
        exclude=tuple(given["exclude"] or ()),
        image_column=given["image_column"],
        data_root=given["data_root"] if is_stored(given["data_root"] or "") else _folder(given["data_root"]),
        limit=limit,
        shard=shard,
        sidecars=sidecars,
        stored=StoredOutput(given["output"]) if is_stored(given["output"] or "") else None,
        retry_errors=given["retry_errors"],
        listed=_standard_input() if given["source"] == "-" else None,
    )
    compute = _computing(given)
    if compute is not None and sidecars is not None:
        raise OptionError("--sidecar is for one machine: give -o FILE with --engine ray, or leave --engine out")
    with Supervisor() as supervisor:
        plan = plan_job(options, None if given["dry_run"] or compute is not None else supervisor)
        for note in plan.scan.notes:
            say(note)
        if given["dry_run"]:
            print_line(f"rows        {plan.total:,} of {plan.scan.rows:,}, {plan.done:,} of them done")
            print_line(f"image       {plan.table.column or 'image'}")
            if sidecars is None:
                print_line(f"new columns {', '.join((*verb.columns, 'error'))}")
            print_line(f"model       {given['model']}")
            print_line(f"output      {options.shown_output}" if sidecars is None else beside.planned(plan, sidecars))
            return
        if plan.done:
            say(f"going on: {plan.done:,} of {plan.total:,} rows are done")
        with stoppable(), show_progress("rows") as progress:
            outcome = run_job(plan, progress, supervisor, compute)
    if sidecars is not None:
        beside.tell(outcome, sidecars, given["source"])
        raise typer.Exit(failure_code(outcome.errors, outcome.rows) if outcome.errors else 0)
    copies = f", {outcome.copies:,} of them with the image of an earlier row" if outcome.copies else ""
    errors = f", {outcome.errors:,} with an error (see its column error; --retry-errors tries them again)"
    rows = f"{outcome.rows:,} {'row' if outcome.rows == 1 else 'rows'}"
    print_line(f"{options.shown_output}: {rows}{copies}{errors if outcome.errors else ''}")
    if outcome.errors:
        raise typer.Exit(failure_code(outcome.errors, outcome.rows))


def _wording(find: list[str] | None, replace: list[str] | None, has_tags: bool = False) -> Wording:
    from openblip.jobs.replacements import read_replacements
    from openblip.jobs.wording import Wording
    from openblip.jobs.words import load_word_lists

    return Wording(load_word_lists(find) if find else (), read_replacements(replace or ()), has_tags)


def _computing(given: Mapping[str, Any]) -> Compute | None:
    """Who computes; None: this machine."""
    chosen = [name for name in CLUSTER_OPTIONS if given[name] is not None]
    if given["engine"] == "local":
        if chosen:
            raise OptionError(f"--{chosen[0].replace('_', '-')} is for clusters: give --engine ray with it")
        return None
    from openblip.jobs.cluster import Cluster, computing_on

    return computing_on(Cluster(given["ray_address"], given["workers"], given["gpus_per_worker"]), say)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise OptionError(f"--shard is {text!r}: give it as 3/16, the third of sixteen parts")
    return int(part), int(parts)


def _folder(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _standard_input() -> list[str]:
    from openblip.images.path_lists import read_lines

    if sys.stdin is None:
        raise OptionError("there is no standard input to read: give a folder, or a list of paths")
    lines = list(read_lines(sys.stdin.buffer))
    if not lines:
        raise OptionError("standard input names no image: it has to have the path of one in each line")
    return lines
