"""Where curves, figures and answers are sent besides the run directory: a CSV file or Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from personalign.contracts import UserError

# How the answers of a run are shown in W&B: one row each.
COLUMNS = ("user", "request", "prompt", "text", "reward")

# How far a closed loop has come: the rounds, and the events that a user who is asked has given.
AXES = ("round", "events")


def make_logger(cfg: Mapping[str, Any], folder: Path, name: str) -> Logger | None:
    """The logger of a composition, writing into the run's folder; None for kind none.

    In W&B a run is in the group that is set, or else in that of its data and model, and it is tagged by its parts.
    """
    settings, choices = cfg["logger"], cfg["choices"]
    if settings["kind"] == "none":
        return None
    if settings["kind"] == "csv":
        return CSVLogger(save_dir=folder, name="", version="csv")
    tags = [f"{group}={_text(choice)}" for group, choice in choices.items() if _text(choice) not in ("", "none")]
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=name,
        project=settings["project"],
        entity=settings["entity"],
        save_dir=folder,
        mode="offline" if settings["offline"] else None,  # Lightning's own way would last for the whole process
        group=settings["group"] or f"{choices['data']}/{choices['model']}",
        tags=[tag[:64] for tag in tags],
        config=dict(cfg),
    )


@contextmanager
def opened(logger: Logger | None) -> Iterator[None]:
    """W&B's run, begun before any work is done for it, and closed when the work fails: the next is another run.

    Raises UserError where W&B refuses to begin one.
    """
    if not isinstance(logger, WandbLogger):
        yield
        return
    _begin(logger)
    try:
        yield
    except BaseException:
        _give_up(logger)
        raise


def _give_up(logger: Logger) -> None:
    with suppress(Exception):
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=1)


def _begin(logger: WandbLogger) -> None:
    from wandb.errors import Error

    try:
        logger.experiment  # noqa: B018 - asking for it begins it
    except Error as error:
        raise UserError(
            f"W&B begins no run ({' '.join(str(error).split())}): log in (`wandb login`, or set WANDB_API_KEY), or "
            "choose logger=wandb_offline, which needs no account and no network"
        ) from error


def _text(choice: Any) -> str:
    return "+".join(choice) if isinstance(choice, list) else str(choice or "")


def log_result(
    logger: Logger | None, record: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    """Send what a finished run came to: figures with their intervals, in a run with rounds a step for each round; the
    answers, the record; then close. The record is written by then: what fails here is said in one line, and no more."""
    if logger is None:
        return
    try:
        _send(logger, record, answers, folder)
    except Exception as error:
        _give_up(logger)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"personalign: warning: the logger did not take the result ({told}); {folder} has it", file=sys.stderr)


def _send(logger: Logger, record: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], folder: Path) -> None:
    values = _values(record["metrics"])
    curve = [
        {**_values(point["metrics"]), **{name: point[name] for name in AXES}} for point in record.get("rounds", ())
    ]
    if isinstance(logger, WandbLogger):
        _draw(logger.experiment, curve)
        _to_wandb(logger.experiment, values, record, answers, folder)
    else:
        for point in curve or [values]:
            logger.log_metrics(point, step=point.get(AXES[0]))
        logger.save()
    logger.finalize("success")


def _values(figures: Mapping[str, Any]) -> dict[str, Any]:
    ends = {f"{name}/{part}": figure[part] for name, figure in figures.items() for part in ("low", "high")}
    return ends | {name: figure["value"] for name, figure in figures.items()}


def _draw(run: Any, curve: Sequence[Mapping[str, Any]]) -> None:
    """Points of a closed loop's curve, drawn over its rounds and not over the steps of training."""
    for name in {name: None for point in curve for name in point}:
        run.define_metric(name, step_metric=AXES[0])
    for point in curve:
        run.log(dict(point))


def _to_wandb(
    run: Any, values: Mapping[str, float], record: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    import wandb

    run.summary.update({**values, **{f"seconds/{k}": v for k, v in record["cost"]["seconds"].items()}})
    rows = [[a["user"], a["request"], a["prompt"], a["text"], (a["truth"] or {}).get("total")] for a in answers]
    run.log({"answers": wandb.Table(columns=list(COLUMNS), data=rows)})
    artifact = wandb.Artifact(f"record-{record['identity']}", type="record")
    artifact.add_file(str(folder / "record.json"))
    artifact.add_file(str(folder / "answers.jsonl"))
    run.log_artifact(artifact)
    wandb.finish()
