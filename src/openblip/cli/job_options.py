"""The flags that all verbs of `openblip run` have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli import sidecars as beside

ROWS_PANEL = "Rows"
WORDS_PANEL = "Words"
CLUSTER_PANEL = "Cluster"
CLUSTER_OPTIONS = ("ray_address", "workers", "gpus_per_worker")
NO_CONTENT = frozenset({"source", "output", "retry_errors", "dry_run", "exclude", "engine", *CLUSTER_OPTIONS})
"""Parameters that decide nothing but which rows there are, which are compared by themselves, or who computes them."""


def about_rows(metavar: str | None, explained: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel=ROWS_PANEL, show_default=False)


def about_words(metavar: str | None, explained: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel=WORDS_PANEL, show_default=False)


Find = Annotated[
    list[str] | None,
    about_words(
        "LISTS",
        "Put the words of lists that the text has in columns of their own: colors, materials, shapes, textures, or "
        "files with a word in each line; separate them by commas, or repeat it. NAME=FILE names the column.",
    ),
]
Replace = Annotated[
    list[str] | None,
    about_words(
        "OLD=NEW",
        "Replace a word, in singular and plural; or a .csv or .tsv file with an old and a new word in each row. "
        "Repeatable. With nothing behind the = the word goes.",
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A folder (with its subfolders), a quoted pattern, a table with a column of images (.csv, .tsv, .jsonl, "
        ".parquet), a list of paths (.txt), a tar or 'shards/{000..099}.tar', an image, an address in object storage "
        "(s3://bucket/photos), or - for a list of paths from standard input.",
        show_default=False,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The .csv, .tsv, .jsonl or .parquet file to write, also s3://bucket/file.csv: all columns of the input, "
        "and the new ones. With --sidecar: keep what is done in FILE.openblip, rather than beside the input.",
        rich_help_panel=args.OUTPUT_PANEL,
        show_default=False,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The name of the new column. Default: caption, answer, embedding or label.",
        rich_help_panel=args.OUTPUT_PANEL,
        show_default=False,
    ),
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Try rows with errors again.", rich_help_panel=args.OUTPUT_PANEL)
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be done, and do nothing.", rich_help_panel=args.OUTPUT_PANEL),
]
Exclude = Annotated[
    list[str] | None,
    about_rows("PATTERN", "Leave out files and folders of a folder or tar by name: 'drafts', '*.png'; repeatable."),
]
ImageColumn = Annotated[str | None, about_rows("NAME", "The column of images. Default: image, path, file_name, ...")]
DataRoot = Annotated[
    str | None,
    about_rows(
        "FOLDER",
        "The folder that paths in the table or list are relative to; paths on Windows drives are looked for in it. "
        "Default: that of the file.",
    ),
]
Limit = Annotated[int | None, about_rows("N", "Only the first N rows.")]
Shard = Annotated[str | None, about_rows("I/N", "Only the I-th of N parts, such as 3/16: for several machines.")]

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine",
        help="Who computes: this machine, or a Ray cluster. The file has the same bytes, and either goes on where the "
        "other stopped.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The head of the Ray cluster. Default: RAY_ADDRESS, or else this machine alone.",
        rich_help_panel=CLUSTER_PANEL,
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Models on the cluster. Default: one a GPU, or one a machine if there are no GPUs.",
        rich_help_panel=CLUSTER_PANEL,
        show_default=False,
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="GPUs of each worker, such as 0.5 for two small models on one. Default: 1 if there are any.",
        rich_help_panel=CLUSTER_PANEL,
        show_default=False,
    ),
]


def _job_options(
    source: Source,
    output: Out = None,
    sidecar: beside.Sidecar = None,
    existing: beside.IfExisting = None,
    exclude: Exclude = None,
    image_column: ImageColumn = None,
    data_root: DataRoot = None,
    limit: Limit = None,
    shard: Shard = None,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    retry_errors: RetryErrors = False,
    dry_run: DryRun = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    """What all verbs have; `run` finds them in the context."""


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `_job_options`, beside its own."""
    shared = inspect.signature(_job_options, eval_str=True).parameters
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        command(**{name: value for name, value in arguments.items() if name not in shared})

    context, *own = signature.parameters.values()
    parameters = [context, *list(shared.values())[:4], *own, *list(shared.values())[4:]]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    return run
