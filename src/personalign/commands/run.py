"""`personalign run` and `personalign evaluate`: one experiment, begun or gone on with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from personalign.commands.arguments import CommandLine, split
from personalign.commands.places import find
from personalign.commands.screen import console
from personalign.composition.compose import compose
from personalign.composition.identity import identity
from personalign.contracts import UserError
from personalign.reporting.collect import collect
from personalign.reporting.terminal import show
from personalign.runtime import threads
from personalign.runtime.logs import quiet
from personalign.runtime.ranks import leads, started
from personalign.runtime.rundir import RunDir

RUN_EXAMPLES = """
personalign run                                                     the base model, the default composition
personalign run memory=statement generation=preference_prompt seed=1
personalign run experiments/retrieval_prompt.yaml memory=recency    an experiment file, one part exchanged
personalign run generation=plain --print-config                     the whole composition, nothing computed
personalign run debug=fast                                          does it run at all? in seconds
The same command again goes on where the run was interrupted, and only shows a run that is done.
"""
EVALUATE_EXAMPLES = """
personalign evaluate runs/0123456789abcdef evaluation=standard       measure a finished run anew
personalign evaluate 0123456789abcdef data=psoups_eval               the same adapters on other data
"""


def register(line: CommandLine) -> None:
    parser = line.command("run", "run one experiment, or go on with it", RUN_EXAMPLES, run)
    parser.add_argument("--print-config", action="store_true", help="print the composition and compute nothing")
    parser.add_words("an experiment file, and overrides (key=value)")
    parser = line.command("evaluate", "measure a finished run with other choices", EVALUATE_EXAMPLES, evaluate)
    parser.add_argument("source", metavar="RUN", help="a run's folder, or the beginning of its name in runs/")
    parser.add_words("overrides (key=value) of data and evaluation")


def run(arguments: Namespace) -> int:
    """Compose and check, compute what is not there yet, show the figures."""
    file, overrides = split(arguments.words)
    cfg = compose(overrides, file)
    if arguments.print_config:
        print(OmegaConf.to_yaml(cfg), end="")
        return 0
    place = RunDir(cfg.paths.runs, identity(cfg))
    done = place.status() == "done"
    if leads():
        told = "this run is done; its figures are read from its record" if done else f"run directory: {place.path}"
        print(told, flush=True)
    if not done:
        compute(cfg)
    return _show(place.path)


def compute(cfg: DictConfig, starts: int | None = None) -> None:
    """Run the experiment of a composition in this process, as `Experiment.run` does."""
    ready()
    carry_out(cfg, starts)


def carry_out(cfg: DictConfig, starts: int | None = None) -> None:
    """Run an experiment where threads are settled; a traceback of ours ends with where to look."""
    from personalign.experiment import Experiment

    experiment = Experiment(cfg)
    try:
        experiment.run(starts)
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"personalign: {experiment.dir.path} has what was done; the same command goes on from there")
        raise


def evaluate(arguments: Namespace) -> int:
    """Answer and measure with a finished run's policy under other choices; the result is a run of its own."""
    source = find(arguments.source)
    file, overrides = split(arguments.words)
    if file is not None:
        raise UserError(f"{file!r} is no override; write key=value")
    if RunDir(source.parent, source.name).status() != "done":
        raise UserError(f"{source} is not a finished run; see personalign status {source}")
    ready()
    from personalign.experiment import Experiment

    experiment = Experiment.from_run(source, overrides)
    experiment.run()
    return _show(experiment.dir.path)


def ready() -> None:
    """Settle what has to be settled before torch is imported."""
    me = started()
    threads.configure(*(me.beside, me.here) if me else ())
    quiet()


def _show(run: Path) -> int:
    if leads():
        show(collect(run), [run], console())
    return 0
