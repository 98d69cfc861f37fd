"""`firstdraft calibrate`: which drafts may stand, at what risk, for what saving."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress
from rich.table import Table

from firstdraft.cli.collected_answers import Answer, AnswerFile, collect, progressing
from firstdraft.cli.failures import expected_failures
from firstdraft.cli.labelled_prompts import LabelledPrompt, read_labelled
from firstdraft.cli.options import client_for
from firstdraft.cli.server import checked_settings, server_failures
from firstdraft.cli.terminal import terminal
from firstdraft.client.errors import FirstdraftError
from firstdraft.client.sync import Client
from firstdraft.local import calibrating
from firstdraft.local.calibrating import CLOUD, Answered, CannotCalibrate, Choice
from quality.labels import CheckFailed, UnknownRule
from schemas.policy import Tier

#: A larger share of prompts without answers is an error.
MOST_FAILED = 0.1
#: With fewer labels, a warning.
FEW_LABELS = 100
#: Rows of the printed table.
ROWS = 12


class Prices(click.ParamType[Mapping[str, Any]]):
    """`edge=0.1,cloud=1,worse=50` with `per=token` or `per=second`."""

    name = "PRICES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Mapping[str, Any]:
        """See click."""
        given = dict(pair.partition("=")[::2] for pair in str(value).split(","))
        per = given.pop("per", "token")
        if given.keys() != {"edge", "cloud", "worse"} or per not in {"token", "second"}:
            self.fail(f"{value!r} must be edge=PRICE,cloud=PRICE,worse=PRICE, and per=token or per=second", param, ctx)
        try:
            prices = {name: float(price) for name, price in given.items()}
        except ValueError:
            self.fail(f"{value!r} has a price that is no number", param, ctx)
        if not all(0 <= price < float("inf") for price in prices.values()):
            self.fail(f"{value!r} has a price below 0, or one that is no number", param, ctx)
        return {**prices, "per": per}


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--max-risk", type=click.FloatRange(0, 1), default=None, help="Share of answers; 0.05 if no goal is given."
)
@click.option("--certainty", type=click.FloatRange(0.5, 1, max_open=True), default=0.9, show_default=True)
@click.option("--cloud-share", type=click.FloatRange(0, 1), default=None, help="Instead: share of drafts to escalate.")
@click.option("--cost", "prices", type=Prices(), default=None, help="Instead: edge=0,cloud=1,worse=50[,per=second].")
@click.option("--strategy", default="ensemble", show_default=True, help="Or `fitted`: an ensemble with fitted weights.")
@click.option("--traffic-class", default=None, help="Only lines of this class, for requests of this class.")
@click.option("--judge", default=None, help="For lines without `expected`: `cloud`, or one of your own.")
@click.option("--audit-by", default="equal", show_default=True, help="How audits compare: equal, number, overlap:0.8.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="The calibration, as JSON."
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), default=None, help="A picture, .svg or .png.")
@click.option("--activate", is_flag=True, help="Make it the active calibration.")
@click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1), help="Requests in flight.")
@click.option("--url", default=None, help="The gateway.")
def calibrate(
    prompts: Path,
    max_risk: float | None,
    certainty: float,
    cloud_share: float | None,
    prices: Mapping[str, Any] | None,
    strategy: str,
    traffic_class: str | None,
    judge: str | None,
    audit_by: str,
    output: Path | None,
    plot: Path | None,
    activate: bool,
    concurrency: int,
    url: str | None,
) -> None:
    """Find the confidence threshold that keeps a promise, from PROMPTS answered by each tier alone.

    A line of PROMPTS is a request body (`prompt` or `messages`, `max_tokens`, ...), and may have `expected` (what a
    right answer is), `checker` (exact, contains, number, regex, json, or one of your own) and `traffic_class`. Without
    `expected`, drafts are compared with the cloud's answers. Answers are kept in PROMPTS.answers: what was interrupted
    goes on where it was.

    \b
    firstdraft calibrate prompts.jsonl --max-risk 0.05 --activate
    firstdraft calibrate prompts.jsonl --cloud-share 0.3 --plot calibration.svg
    """
    if sum(goal is not None for goal in (max_risk, cloud_share, prices)) > 1:
        raise click.UsageError("--max-risk, --cloud-share and --cost exclude each other")
    if plot is not None and plot.suffix not in {".svg", ".png"}:
        raise click.UsageError(f"--plot {plot} must end in .svg or .png")
    for file in (output, plot):
        if file is not None and not file.parent.is_dir():
            raise click.UsageError(f"there is no folder {file.parent}")
    draw = None if plot is None else _drawing()
    settings = checked_settings().edge.confidence
    with server_failures(), expected_failures(CannotCalibrate, UnknownRule, CheckFailed):
        lines = [line for line in read_labelled(prompts) if traffic_class in {None, line.traffic_class}]
        for line in lines:
            calibrating.check_line(line.expected, line.checker)
        calibrating.check_choice(strategy, audit_by, judge, settings)
        names = calibrating.members(settings)
        with client_for(url) as client:
            edge_model, cloud_model = _models(client)
            answered = _answered(
                client,
                lines,
                _measured_by(names, settings.quantile),
                (edge_model, cloud_model),
                judge,
                prompts.with_name(f"{prompts.name}.answers"),
                concurrency,
            )
        no_goal = cloud_share is None and prices is None
        choice = Choice(
            edge_model=edge_model,
            cloud_model=cloud_model,
            traffic_class=traffic_class,
            strategy=strategy,
            audited_by=audit_by,
            max_risk=(0.05 if max_risk is None else max_risk) if no_goal else None,
            certainty=certainty,
            cloud_share=cloud_share,
            prices=prices,
            judge=judge,
        )
        calibration = calibrating.fit(answered, choice, settings)
        if len(answered) < FEW_LABELS:
            terminal(stderr=True).print(f"only {len(answered)} labels: the bounds are wide", style="yellow")
        _show(calibration)
        if output is not None:
            output.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if plot is not None and draw is not None:
            draw(calibration, plot)
        if activate:
            with calibrating.calibration_store() as store:
                version = store.activate(calibration)
            click.echo(f"calibration {version} is active")


def _models(client: Client) -> tuple[str, str]:
    """The models that are measured: of each tier there must be one."""
    workers = client.system().workers
    found = []
    for tier in (Tier.EDGE, Tier.CLOUD):
        models = sorted({worker.model for worker in workers if worker.tier == tier})
        if len(models) != 1:
            there = "none" if not models else ", ".join(models)
            raise CannotCalibrate(f"a calibration is of one {tier} model; live workers have {there}")
        found.append(models[0])
    return found[0], found[1]


def _measured_by(names: Sequence[str], quantile: float) -> Mapping[str, Any]:
    weights = dict.fromkeys(names, 1.0)
    return {"strategy": "ensemble", "weights": weights, "quantile": quantile, "threshold": 0.0}


def _answered(
    client: Client,
    lines: Sequence[LabelledPrompt],
    measured_by: Mapping[str, Any],
    models: tuple[str, str],
    judge: str | None,
    path: Path,
    concurrency: int,
) -> list[Answered]:
    """Each prompt with both tiers' answers; those that failed are said and left out."""
    edge = [{**line.body, "temperature": 0.0, "policy": "edge_only", "confidence": measured_by} for line in lines]
    cloud = [{**line.body, "temperature": 0.0, "policy": "cloud_only"} for line in lines]
    kept = AnswerFile(path)
    try:
        drafts = _ask_all(client, kept, models[0], edge, concurrency, "drafts", lines)
        answers = _ask_all(client, kept, models[1], cloud, concurrency, "the cloud's answers", lines)
        both = [index for index in range(len(lines)) if index in drafts and index in answers]
        if len(both) < (1 - MOST_FAILED) * len(lines):
            raise CannotCalibrate(f"only {len(both)} of {len(lines)} prompts have two answers")
        agree = {}
        if judge == CLOUD:
            unclear = [
                index
                for index in both
                if calibrating.needs_judge(drafts[index]["text"], answers[index]["text"], lines[index].expected)
            ]
            asked = [
                {
                    "prompt": calibrating.question(lines[index].text, drafts[index]["text"], answers[index]["text"]),
                    "policy": "cloud_only",
                    "temperature": 0.0,
                    "max_tokens": 1,
                    "logprobs": True,
                    "top_logprobs": 20,
                }
                for index in unclear
            ]
            said = _ask_all(client, kept, models[1], asked, concurrency, "judgements", [lines[i] for i in unclear])
            agree = {unclear[place]: calibrating.agreement(answer["first"]) for place, answer in said.items()}
    except KeyboardInterrupt:
        click.echo(f"stopped; {len(kept)} answers are in {path}, and the same command goes on from there", err=True)
        raise
    finally:
        kept.close()
    return [
        Answered(
            prompt=lines[index].text,
            draft=drafts[index]["text"],
            answer=answers[index]["text"],
            parts=drafts[index]["parts"],
            tokens=(drafts[index]["tokens"], answers[index]["tokens"]),
            seconds=(drafts[index]["seconds"], answers[index]["seconds"]),
            expected=lines[index].expected,
            checker=lines[index].checker,
            agree=agree.get(index),
        )
        for index in both
        if judge != CLOUD
        or index in agree
        or not calibrating.needs_judge(drafts[index]["text"], answers[index]["text"], lines[index].expected)
    ]


def _ask_all(
    client: Client,
    kept: AnswerFile,
    model: str,
    bodies: Sequence[Mapping[str, Any]],
    concurrency: int,
    what: str,
    lines: Sequence[LabelledPrompt],
) -> dict[int, Answer]:
    found = {}
    with Progress(console=terminal(stderr=True)) as progress:
        task = progress.add_task(what, total=len(bodies))
        running = collect(client, kept, model, bodies, concurrency)
        for index, answer in progressing(running, lambda: progress.advance(task)):
            if isinstance(answer, FirstdraftError):
                progress.console.print(f"line {lines[index].number} has no answer: {answer}", markup=False)
            else:
                found[index] = answer
    return found


def _show(calibration: Any) -> None:
    table = Table("threshold", "kept", "risk", "bound", "cost saved")
    points = calibration.frontier
    shown = {round(place * (len(points) - 1) / (ROWS - 1)) for place in range(ROWS)} if points else set()
    for place in sorted(shown):
        point = points[place]
        saved = "" if point.cost_saved is None else f"{point.cost_saved:.1%}"
        table.add_row(f"{point.threshold:.4f}", f"{point.kept:.1%}", f"{point.risk:.1%}", f"{point.bound:.1%}", saved)
    terminal().print(table)
    click.echo(calibrating.described(calibration))


def _drawing() -> Callable[[Any, Path], None]:
    """What draws a calibration. Ends the command where its library is missing, before any answer is paid for."""
    try:
        from firstdraft.local.calibration_plot import draw  # noqa: PLC0415 - its library comes with an extra
    except ModuleNotFoundError as missing:
        raise click.ClickException(f"a plot needs {missing.name}: pip install 'firstdraft[quality]'") from missing
    return draw
