"""The command line: one function a verb, each a call of the public function of the same name.

Nothing heavy is imported before a verb is called, so that help is there at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer import Argument, Option

import medform
from medform.cli import options as o
from medform.cli.faults import explain_fault, interrupted
from medform.cli.output import exit_code, prepare, show
from medform.cli.progress import Reporter
from medform.errors import InputError

__all__ = ["app", "invoke", "main"]

app = typer.Typer(
    help="From a hospital's folders and spreadsheet to one aligned, evaluated and explained multimodal "
    "model. Research use only, not a medical device.",
    epilog="Start with: medform demo -o demo, or medform check FOLDER --table TABLE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """The program `medform`."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every fault ends here."""
    debug = "--debug" in arguments
    prepare(debug)
    try:
        if "--resume" in arguments and "--overwrite" in arguments:
            raise InputError("--resume and --overwrite exclude each other.", fix="give one of them.")
        app(list(arguments), prog_name="medform")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code == 130:
            print(interrupted(arguments), file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(interrupted(arguments), file=sys.stderr)
        return 130
    except Exception as error:
        return explain_fault(error, debug)
    return 0


def finish(result: Any, json: bool, strict: bool = False, said: str | None = None) -> None:
    """Show a result, or ``said`` in its place to a person, and leave with its exit code."""
    show(said if said is not None and not json else result, json)
    raise typer.Exit(exit_code(result, strict))


def settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """The pairs KEY=VALUE as a mapping; values are YAML with every scalar as text."""
    from medform.config import read_yaml

    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"'{pair}' is not KEY=VALUE.", where="--set", fix=f"write --set {key}=VALUE.")
        found[key.strip()] = read_yaml(value, where=f"--set {key}")
    return found


def later(verb: str, instead: str) -> NoReturn:
    """Refuse a verb that is in the table of verbs and does not work yet."""
    raise InputError(f"`medform {verb}` is not in this version yet.", consequence="Nothing was done.", fix=instead)


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(f"medform {medform.__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Holds what is asked before any verb."""


program.__doc__ = None  # the help text of the program is the one of `app`


@app.command()
def doctor(
    path: Annotated[Path | None, Argument(help="A store or a run to check instead of the machine.")] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Check this machine, a cohort store or a run: each point with its status and what to do."""
    finish(medform.doctor(path), json)


@app.command()
def demo(out: o.Out, json: o.Json = False, debug: o.Debug = False) -> None:
    """Make a synthetic hospital and run everything on it; prints the path of the report last."""
    with Reporter() as progress:
        result = medform.demo(out, progress=progress)
    finish(result, json)


@app.command()
def phantom(
    out: Annotated[Path, Argument(help="Folder to write the hospital to.")],
    patients: Annotated[int, Option(help="How many patients.", min=2)] = 40,
    seed: Annotated[int, Option(help="The same seed gives the same bytes.")] = 0,
    set_: Annotated[
        list[str] | None,
        Option("--set", help="Change what is planted, as signal=off or shortcut=0.8.", metavar="KEY=VALUE"),
    ] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write a synthetic hospital: DICOM, tables, genes, masks, and truth.json that says what was planted."""
    truth = medform.phantom(out, patients=patients, seed=seed, options=settings(set_), overwrite=overwrite)
    said = f"{out}: a synthetic hospital of {patients} patients."
    finish(truth, json, said=f"{said}\nNext: medform check {out / 'images'} --table {out / 'clinical.xlsx'}")


@app.command()
def check(
    path: Annotated[Path, Argument(help="Folder or file with images.")],
    table: o.Table = None,
    sheet: o.Sheet = None,
    header_row: o.HeaderRow = 1,
    privacy: Annotated[bool, Option("--privacy", help="Also look for what identifies a person.")] = False,
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Say what of a folder and a table is usable, and why the rest is not; changes nothing."""
    with Reporter() as progress:
        result = medform.check(
            path, table=table, sheet=sheet, header_row=header_row, privacy=privacy, progress=progress
        )
    finish(result, json, strict)


@app.command()
def init(
    path: Annotated[Path, Argument(help="Folder with images.")],
    out: o.Out,
    table: o.Table = None,
    sheet: o.Sheet = None,
    header_row: o.HeaderRow = 1,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Draft a commented cohort file from what lies in a folder."""
    finish(medform.init(path, table=table, out=out, sheet=sheet, header_row=header_row, overwrite=overwrite), json)


@app.command()
def ingest(
    cohort: Annotated[Path, Argument(help="The cohort file (YAML).")],
    out: o.Out,
    root: o.Root = None,
    workers: o.Workers = 1,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Read images and tables into a cohort store; what cannot be vouched for is quarantined."""
    with Reporter() as progress:
        result = medform.ingest(
            cohort, root=root, out=out, workers=workers, resume=resume, overwrite=overwrite, progress=progress
        )
    finish(result, json, strict)


@app.command()
def pretrain(
    source: Annotated[
        Path, Argument(help="A cohort file, a cohort store, or a bare folder of images.", metavar="INPUT")
    ],
    out: o.Out,
    recipe: o.Recipe = "medform-small",
    root: o.Root = None,
    folds: o.Folds = None,
    workers: o.Workers = 1,
    device: o.Device = "auto",
    seed: o.Seed = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Pre-train the image encoder on slices; a bare folder needs no table."""
    with Reporter() as progress:
        result = medform.pretrain(
            source, out, recipe=recipe, root=root, folds=folds, workers=workers, device=device, seed=seed,
            overrides=set_ or (), resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    finish(result, json, strict)


@app.command()
def align(
    run: o.Run,
    out: o.Out,
    recipe: Annotated[str | None, Option(help="Recipe of the alignment.", show_default="the run's own")] = None,
    device: o.Device = "auto",
    seed: o.Seed = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Align a pre-trained image encoder with the clinical table."""
    with Reporter() as progress:
        result = medform.align(
            run, out, recipe=recipe, device=device, seed=seed, overrides=set_ or (), resume=resume,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    finish(result, json, strict)


@app.command()
def evaluate(
    run: Annotated[
        Path | None, Argument(help="A run folder; or give --model or --embeddings.", metavar="[RUN]")
    ] = None,
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="Run folder to write, with --model or --embeddings.", show_default=False),
    ] = None,
    model: Annotated[Path | None, Option(help="A frozen segmentation, judged on another cohort's masks.")] = None,
    embeddings: Annotated[Path | None, Option(help="Vectors of any encoder (parquet), judged like ours.")] = None,
    cohort: Annotated[Path | None, Option(help="The cohort file, with --model or --embeddings.")] = None,
    root: o.Root = None,
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Score a run, a frozen model or given vectors, beside their controls and with intervals."""
    with Reporter() as progress:
        result = medform.evaluate(
            run, out=out, model=model, embeddings=embeddings, cohort=cohort, root=root, progress=progress
        )
    finish(result, json, strict)


@app.command()
def embed(
    path: Annotated[Path, Argument(help="A scan (folder, DICOM, NIfTI), a folder of scans, or a cohort store.")],
    out: o.Out,
    model: Annotated[
        Path | None,
        Option(help="A model folder, or a run that holds one.", show_default="the ImageNet start"),
    ] = None,
    device: o.Device = "auto",
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write one vector a slice and one a series (parquet)."""
    with Reporter() as progress:
        result = medform.embed(path, model=model, out=out, device=device, progress=progress)
    finish(result, json, strict)


@app.command()
def predict(
    path: Annotated[Path, Argument(help="A scan, or a folder of patients.")],
    model: o.Model,
    out: Annotated[Path | None, Option("--out", "-o", help="CSV to write.", show_default="printed")] = None,
    table: o.Table = None,
    row: Annotated[Path | None, Option(help="One patient's columns (JSON or YAML), for a single scan.")] = None,
    device: o.Device = "auto",
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Predict for patients with a trained model, each with what was missing. Research use only."""
    with Reporter() as progress:
        result = medform.predict(path, model, table=table, row=row, out=out, device=device, progress=progress)
    finish(result, json, strict)


@app.command()
def explain(
    run: o.Run,
    patient: Annotated[str, Option(help="The patient's pseudonym or id.", show_default=False)],
    out: Annotated[Path | None, Option("--out", "-o", help="Folder to write.", show_default="RUN/explain")] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """(not in this version yet) Contact sheet of the slices that counted for a patient, and a CSV."""
    later("explain", "the report of a run shows the attention of six patients: medform report RUN.")


@app.command()
def segment(
    scan: Annotated[Path, Argument(help="A scan (folder, DICOM, NIfTI, pictures), or a folder of patients.")],
    model: o.Model,
    out: o.Out,
    genes: Annotated[
        Path | None, Option(help="Gene expression: genes as columns, a row a patient.", show_default="none")
    ] = None,
    format_: Annotated[str, Option("--format", help="nifti, nrrd, dicomseg, png; several joined by commas.")] = "nifti",
    device: o.Device = "auto",
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write the lesion of a scan as masks in its own geometry. Research use only."""
    with Reporter() as progress:
        result = medform.segment(scan, model, genes=genes, out=out, formats=format_, device=device, progress=progress)
    finish(result, json)


@app.command()
def run(
    recipe: Annotated[str, Argument(help="A shipped recipe (medform-small, mgi-small, trimodal), or a recipe file.")],
    cohort: o.CohortFiles,
    out: o.Out,
    root: o.Root = None,
    folds: o.Folds = None,
    store: o.Store = None,
    workers: o.Workers = 1,
    device: o.Device = "auto",
    seed: o.Seed = None,
    set_: o.Set = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """From files to report: ingest, pretrain, align, evaluate, export and report, in one folder."""
    with Reporter() as progress:
        result = medform.run(
            recipe, cohort, root=root, out=out, folds=folds, store=store, workers=workers, device=device,
            seed=seed, overrides=set_ or (), resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    finish(result, json, strict)


@app.command()
def report(
    run: o.Run,
    images: Annotated[bool, Option("--images/--no-images", help="With pictures of patients, or without.")] = True,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Make the HTML page of a run, from its folder alone."""
    finish(medform.report(run, images=images), json)


@app.command()
def export(
    run: o.Run,
    out: o.Out,
    fold: Annotated[int | None, Option(help="The model of this fold.", show_default="the one of all patients")] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write the model folder of a run: weights, preprocessing, probes, card, licence and self-test."""
    finish(medform.export(run, out, fold=fold), json)
