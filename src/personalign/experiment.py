"""One experiment, read from top to bottom as the survey's cycle (arXiv 2503.17003, section 3.1): preference memory
takes histories in, alignment makes the policy, generation answers for each user (at a strength that may be chosen on
validation requests, see `tuning`), evaluation measures; then, as often as `rounds` says, users are asked, memory takes
in what they say, and generation and evaluation come again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from personalign.answering import answer
from personalign.composition.compose import recompose
from personalign.composition.identity import identity, label
from personalign.composition.validate import has_lessons, lessons
from personalign.contracts import UserError
from personalign.judging import ANSWERS, judge
from personalign.rounds import Loop, Point, Told
from personalign.runtime.files import read_jsonl
from personalign.runtime.fitting import Fitting
from personalign.runtime.launch import run_ranks
from personalign.runtime.loggers import log_result, make_logger, opened
from personalign.runtime.operators import require_deepspeed
from personalign.runtime.provenance import provenance
from personalign.runtime.ranks import Rank, check, join, started, wait_for_all
from personalign.runtime.rundir import RunDir
from personalign.runtime.seeds import seed_everything
from personalign.system import System
from personalign.tuning import Tuning
from personalign.types import Pair


class Experiment:
    """A legal composition (see `personalign.compose`) and its run directory.

    `run` does what is missing and returns the record; a finished run is read, not computed again.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.dir = RunDir(cfg.paths.runs, identity(cfg))
        self.seconds: dict[str, float] = {}

    @cached_property
    def logger(self) -> Logger | None:
        """Made when something is first logged, so that a finished run starts none."""
        plain = cast(dict[str, Any], OmegaConf.to_container(self.cfg, resolve=True))
        return make_logger(plain, self.dir.path, label(self.cfg))

    def run(self, starts: int | None = None) -> dict[str, Any]:
        """The record: figures with n and interval, cost, and all that it takes to trust them.

        Raises UserError for what the user can put right, after noting it in the run's status; `Taken` when another
        process computes the run, or has begun it since it was at so many `starts`.
        """
        finished = self._finished()
        if finished is not None:
            return finished
        me = started()
        check(me, self.cfg.trainer.devices, self.cfg.trainer.num_nodes)
        if me is None or me.rank == 0:
            self._keep(me, starts)
        else:
            self.work(me.rank, me.world)
        record = self.dir.record()
        assert record is not None, "rank 0 writes the record"
        return record

    def _finished(self) -> dict[str, Any] | None:
        record = self.dir.record()
        return record if self.dir.status() == "done" else None

    def _keep(self, me: Rank | None, starts: int | None) -> None:
        """Rank 0, or the parent of the ranks: hold the run's folder while the work is done."""
        with self.dir.lock(starts):
            if self._finished() is not None:
                return  # another process has done it since
            self.dir.create(self.cfg)
            self.dir.set_status("running")
            try:
                self._all_ranks(me)
            except Exception as error:
                self.dir.set_status("failed", f"{type(error).__name__}: {error}")
                raise
            self.dir.set_status("done")

    def _all_ranks(self, me: Rank | None) -> None:
        """The work in this process, or in as many as the trainer says unless somebody has started them."""
        trainer = self.cfg.trainer
        if trainer.strategy == "deepspeed" and self.cfg.alignment:
            require_deepspeed(trainer.accelerator)
        if me is not None:
            self.work(me.rank, me.world)
        elif trainer.strategy == "none":
            self.work(0, 1)
        else:
            run_ranks("personalign.worker", self.dir.path, trainer.devices)

    def work(self, rank: int, ranks: int) -> None:
        """This rank's part: every rank learns and answers its share, then rank 0 measures and writes the record."""
        with opened(self.logger if rank == 0 else None):
            self._work(rank, ranks)

    def _work(self, rank: int, ranks: int) -> None:
        seed_everything(self.cfg.seed)
        join(self.cfg.trainer.process_group_backend, ranks)
        mine = RunDir(self.dir.path.parent, self.dir.identity, rank)
        system = System(self.cfg)
        with self._timed("memory"):
            system.prepare()
            _check_held_out(system)
            loop, tuning = Loop(system, mine), Tuning(system, mine)
        with self._timed("alignment"):
            training = self._align(system)
        tuned = self._tune(tuning, rank, ranks) if tuning.requests else None
        requests = system.requests()
        curve: list[Point] = []
        for round in range(self.cfg.rounds + 1):
            if round:
                training = self._hear(system, loop, ranks) or training
            with self._timed("generation"):
                answer(system, mine, requests, rank, ranks)
                wait_for_all(ranks)
            if rank == 0:
                with self._timed("evaluation"):
                    curve.append(loop.point(judge(system, mine, requests), requests))
        if rank == 0:
            record = self._record(system, curve, loop.cost, training, tuned)
            mine.write_record(record)
            log_result(self.logger, record, list(read_jsonl(mine.path / ANSWERS)), mine.path)
        wait_for_all(ranks)

    def _align(self, system: System, told: Sequence[Pair] = ()) -> dict[str, dict[str, float]]:
        """Run the stages in their order, from the base on; each writes adapters and heads by name into the policy."""
        teacher = self._teacher(system)
        data = Told(teacher.data, told) if told else teacher.data
        system.reset()
        training = {}
        for name, stage in system.stages.items():
            teacher.learned()
            if "pairs" in stage.needs:
                teacher.recall([pair.request for pair in data.pairs("train")])
            stage.bind(teacher.guidance(), teacher.recalled)
            training[name] = dict(stage.fit(system.policy.learner, data, teacher.render, self._fitting()))
        system.learned()
        return training

    def _tune(self, tuning: Tuning, rank: int, ranks: int) -> dict[str, Any]:
        with self._timed("tuning"):
            return tuning.choose(rank, ranks)

    def _hear(self, system: System, loop: Loop, ranks: int) -> dict[str, dict[str, float]] | None:
        """Ask users, and align anew with what they say where that is wanted."""
        with self._timed("feedback"):
            loop.ask(ranks)
        if not self.cfg.asking.refit:
            return None
        with self._timed("alignment"):
            return self._align(system, loop.told)

    def _teacher(self, system: System) -> System:
        """Whose data and prompts are learned from: this composition's, those of the run it takes its policy from, or
        either's with its training data in place of its data."""
        cfg = self.cfg
        while cfg.source is not None:
            cfg = RunDir(Path(cfg.source).parent, Path(cfg.source).name).config()
        tree = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        if has_lessons(tree):
            cfg = OmegaConf.create(lessons(tree))
        if cfg is self.cfg:
            return system
        teacher = System(cfg, system.policy)
        teacher.prepare()
        return teacher

    def _fitting(self) -> Fitting:
        """What is learned is kept by its content beside the runs, so that rows that train the same share it."""
        cfg = self.cfg
        return Fitting(
            trainer=cast(dict[str, Any], OmegaConf.to_container(cfg.trainer, resolve=True)),
            folder=Path(cfg.paths.runs).expanduser() / "policies",
            cache=Path(cfg.paths.cache).expanduser(),
            logger=self.logger,
            seed=cfg.seed,
            micro_batch=cfg.micro_batch,
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - started, 3)

    def _record(
        self,
        system: System,
        curve: list[Point],
        asking: list[dict[str, Any]],
        training: dict[str, Any],
        tuned: dict[str, Any] | None,
    ) -> dict[str, Any]:
        made = [*(row["cost"] for row in self.dir.responses()), *asking]
        return {
            "name": label(self.cfg),
            "identity": self.dir.identity,
            "seed": self.cfg.seed,
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "metrics": curve[-1]["metrics"],
            **({"rounds": curve} if self.cfg.rounds else {}),
            **({"tuning": tuned} if tuned else {}),
            "training": training,
            "cost": {
                "seconds": self.seconds,
                "forward_tokens": sum(cost["forward_tokens"] for cost in made),
                "new_tokens": sum(cost["new_tokens"] for cost in made),
                "reused_tokens": sum(cost.get("reused_tokens", 0) for cost in made),
            },
            "data_hash": system.data.fingerprint(),
            "users": system.people(system.requests()),
            "flags": ["oracle"] if _is_oracle(self.cfg) else [],
            "provenance": provenance(),
        }

    @classmethod
    def from_run(cls, run: str | Path, overrides: Sequence[str]) -> Experiment:
        """A finished run's policy under other choices: what it was trained on stays as it was there.

        Raises UserError when the overrides do not fit the run's composition.
        """
        path = Path(run)
        cfg = RunDir(path.parent, path.name).config()
        return cls(recompose(cfg, [*overrides, f"source={path.absolute()}"]))


def _check_held_out(system: System) -> None:
    """Raise UserError where no request is held out: a run would train, answer nobody and measure nothing."""
    if not system.requests():
        raise UserError(
            f"data={system.cfg.choices.data} holds out no request (none is of split test), so that there is nothing "
            "to answer or to measure: give some requests the split test (data.test above 0 where it splits them "
            "itself), or choose other data"
        )


def _is_oracle(cfg: DictConfig) -> bool:
    """Whether the system is guided by the reward that also judges it."""
    return cfg.guide._target_ is not None and cfg.guide._target_ == cfg.truth._target_
