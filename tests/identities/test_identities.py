"""What methods are equal to, as formulas say it: on decoded answers, greedy and drawn, of random models in float32."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as brute
import torch
from omegaconf import OmegaConf
from torch import nn

from personalign.composition.build import build
from personalign.composition.home import home
from personalign.contracts import Generation
from personalign.decoding.decoder import Decoder
from personalign.decoding.rows import Job
from personalign.plans import Candidates, Chat, Deltas, Plan, PolicySpec, Rater, Sampling, Stream
from personalign.policy.features import Reader
from personalign.policy.loading import Tiny
from personalign.policy.lora import LoRAConfig, parameters
from personalign.policy.policy import Policy
from personalign.policy.reward_heads import BradleyTerryHead
from personalign.types import Message, Request, Snippet, Stance, UserState

WORDS = ("tea", "sea", "why", "poem", "rain", "moon", "river", "joke", "city", "how", "is", "the", "of", "and", "short")
TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "down_proj")
ONE, TWO, SAME, NOTHING = ((name, 1.0) for name in ("one", "two", "same", "nothing"))
ALL = Candidates()
Told = list[tuple[int, ...]]


@dataclass
class World:
    """A random model, prompts of random lengths, what is known of each user, and how answers are drawn."""

    policy: Policy
    draw: random.Random
    twin: Policy = field(init=False)
    asked: list[tuple[Request, UserState]] = field(init=False)
    samplings: tuple[Sampling, ...] = field(init=False)

    def __post_init__(self) -> None:
        draw = self.draw
        self.twin = brute.exact(self.policy)
        self.asked = [(self.request(str(i)), UserState(profile=self.words((1, 4)))) for i in range(2)]
        drawn = Sampling(draw.uniform(0.5, 1.5), draw.choice((0, 5, 40)), draw.choice((0.7, 0.95, 1.0)))
        length, seed = draw.randint(3, 7), draw.randrange(1000)
        self.samplings = Sampling(max_new_tokens=length), replace(drawn, n=2, max_new_tokens=length, seed=seed)

    def words(self, lengths: Sequence[int]) -> str:
        return " ".join(self.draw.choices(WORDS, k=self.draw.choice(lengths)))

    def request(self, name: str) -> Request:
        turns = (Message("user", self.words((1, 3, 12, 30))),)
        if self.draw.random() < 0.5:
            turns = (Message("system", self.words((2, 5))), *turns)
        return Request(id=f"{name}-{self.draw.randrange(100)}", user="ada", messages=turns)

    def stance(self, *weights: float) -> list[tuple[Request, UserState]]:
        """The requests, of users with these weights."""
        return [(r, replace(s, stance=Stance(("a", "b")[: len(weights)], weights))) for r, s in self.asked]

    def answers(self, plans: Sequence[Plan], sampling: Sampling) -> Told:
        jobs = [
            Job(request.id, replace(plan, sampling=sampling))
            for (request, _), plan in zip(self.asked, plans, strict=True)
        ]
        made = Decoder(self.policy, self.draw.choice((2, 4, 8))).generate(jobs)
        assert all(r.tokens for r in made) and len(made) == len(plans) * sampling.n
        return [r.tokens for r in made]

    def by(self, part: Generation, spec: PolicySpec, sampling: Sampling, known: object = None) -> Told:
        """The answers of a method."""
        asked: Any = known or self.asked
        return self.answers([part.plan(request, state, spec) for request, state in asked], sampling)

    def of(self, sampling: Sampling, deltas: Deltas = (), rule: Candidates = ALL) -> Told:
        """The answers of one stream on the plain prompt."""
        plans = [Plan((Stream((Chat(request.messages),), 1.0, deltas),), rule) for request, _ in self.asked]
        return self.answers(plans, sampling)

    def loop(self, plan: Callable[[Request, UserState], Plan], step: Callable[[Plan, list[int]], int]) -> Told:
        """Greedy answers, a token at a time."""
        found = []
        for request, state in self.asked:
            tokens: list[int] = []
            while len(tokens) < self.samplings[0].max_new_tokens and not set(tokens) & set(self.policy.stop_ids):
                tokens.append(step(plan(request, state), tokens))
            found.append(tuple(tokens))
        return found


@pytest.fixture(scope="module", params=range(4))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return made(request.param, tmp_path_factory.mktemp("cache"))


def made(seed: int, cache: Path) -> World:
    """Adapters `one` and `two` of one kind, `same` as `one`, `nothing` as it is before training; a head that rates."""
    draw = random.Random(seed)
    heads = draw.choice((2, 4))
    width, layers, kv = draw.choice((16, 32, 64)), draw.randint(1, 3), draw.choice((1, 2, heads))
    policy = Tiny(hidden=width, layers=layers, heads=heads, kv_heads=kv, context=1024, seed=seed).build(cache, "fp32")
    generator = torch.Generator().manual_seed(seed)
    where = draw.choice((None, (layers - 1,)))
    config = LoRAConfig(draw.choice((2, 4)), 8, 0.0, tuple(draw.sample(TARGETS, 3)), where)
    for name in ("one", "two", "same", "nothing"):
        policy.add_adapter(name, config)
    for name in ("one", "two"):
        for weights in parameters(policy.model, name):
            nn.init.normal_(weights, std=0.2, generator=generator)
    with torch.no_grad():
        for mine, other in zip(parameters(policy.model, "same"), parameters(policy.model, "one"), strict=True):
            mine.copy_(other)
    head = BradleyTerryHead(width, Reader((), draw.choice(("mean", "last")), 900, 100))
    head.standardise(torch.randn(20, width, generator=generator))
    nn.init.normal_(head.weight, generator=generator)
    policy.heads["bradley_terry"] = head
    policy.stop_ids = tuple(range(2, 250, draw.randint(15, 40)))
    return World(policy, draw)


def spec(*features: tuple[str, float]) -> PolicySpec:
    return PolicySpec(features={name: (delta,) for name, delta in zip("ab", features, strict=False)})


def aligned(*deltas: tuple[str, float]) -> PolicySpec:
    return PolicySpec(aligned=deltas)


def part(choice: str, **changes: Any) -> Generation:
    """A method as it ships, with some values changed."""
    conf = home() / "conf"
    node = {"prompts": OmegaConf.load(conf / "config.yaml").prompts}
    node["part"] = OmegaConf.merge(OmegaConf.load(conf / "generation" / f"{choice}.yaml"), changes)
    found: Generation = build(OmegaConf.create(node).part)
    return found


# --- context steering ------------------------------------------------------------------------------

GAMES = [(60, 2.0, 2.0, 10.0), (1, 2.0, 2.0, 10.0), (20, 2.5, 3.0, 1.0)]


def strength(*game: Any) -> float:
    """How far the game goes beyond the context, read off what it makes of two random policies."""
    context, plain = (brute.log_softmax(row) for row in np.random.default_rng(0).normal(size=(2, 30)))
    moved, way = brute.amulet(context, plain, *game) - context, context - plain
    return float(np.polyfit(way, moved, 1)[0])


@pytest.mark.parametrize("game", GAMES, ids=str)
def test_amulet_is_its_game_and_cos_of_its_strength(world: World, game: tuple[int, float, float, float]) -> None:
    values = dict(zip(("iterations", "alpha", "lambda_", "eta"), game, strict=True))
    amulet, cos, known = part("amulet", **values), part("cos", strength=strength(*game)), aligned(ONE)
    for sampling in world.samplings:
        assert world.by(amulet, known, sampling) == world.by(cos, known, sampling)

    def step(plan: Plan, tokens: list[int]) -> int:
        each = [brute.logprobs(world.twin, stream, tokens) for stream in plan.streams]
        return int(brute.amulet(*each, *game).argmax())

    unsteered = part("cos", strength=1.0)  # its plan has both prompts
    expected = world.loop(lambda request, state: unsteered.plan(request, state, known), step)
    assert world.by(amulet, known, world.samplings[0]) == expected


@pytest.mark.parametrize("deltas", [(), (ONE,)], ids=["base", "trained"])
def test_cos_of_zero_is_in_context_and_of_minus_one_without(world: World, deltas: Deltas) -> None:
    known = aligned(*deltas)
    for sampling in world.samplings:
        told, plain = (world.by(part(name), known, sampling) for name in ("preference_prompt", "plain"))
        assert world.by(part("cos", strength=0.0), known, sampling) == told
        assert world.by(part("opad", strength=0.0), known, sampling) == told
        assert world.by(part("linear_alignment", strength=0.0), known, sampling) == told
        assert world.by(part("cos", strength=-1.0), known, sampling) == plain
        assert plain == world.of(sampling, deltas) != told
        assert world.by(part("cos", strength=1.5), known, sampling) not in (told, plain)


def test_one_context_of_several_has_another_zero_point(world: World) -> None:
    several = [(r, UserState(snippets=(Snippet(s.profile or "", "e", "ada", 1.0),))) for r, s in world.asked]
    for sampling in world.samplings:
        for weight in (0.0, 1.0, 1.7):
            expected = world.by(part("cos", strength=weight - 1.0), aligned(TWO), sampling)
            assert world.by(part("multi_cos", strength=weight), aligned(TWO), sampling, several) == expected


# --- multi-objective decoding, soups ---------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jensen_shannon"])
@pytest.mark.parametrize("other", [ONE, SAME], ids=["one name", "two names"])
def test_equal_policies_are_the_policy(world: World, divergence: str, other: tuple[str, float]) -> None:
    weight = world.draw.uniform(0.1, 0.9)
    for sampling in world.samplings:
        expected = world.of(sampling, (ONE,))
        assert expected != world.of(sampling)
        mod = part("mod", divergence=divergence, weights=world.draw.choice(("simplex", "signed")))
        assert world.by(mod, spec(ONE, other), sampling, world.stance(weight, 1 - weight)) == expected


@pytest.mark.parametrize(
    ("form", "weights"), [("delta", "simplex"), ("delta", "signed"), ("factor", "simplex")], ids=str
)
def test_a_soup_at_a_vertex_is_that_adapter(world: World, form: str, weights: str) -> None:
    soup, known = part("soup", form=form, weights=weights), spec(ONE, TWO)
    for sampling in world.samplings:
        ends = world.of(sampling, (ONE,)), world.of(sampling, (TWO,))
        for end, vertex in zip(ends, ((1.0, 0.0), (0.0, 1.0)), strict=True):
            assert world.by(soup, known, sampling, world.stance(*vertex)) == end
        assert world.by(soup, known, sampling, world.stance(0.5, 0.5)) not in ends
        assert world.by(soup, known, sampling, world.stance(0.0, 0.0)) == world.of(sampling)


# --- guided decoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7])
def test_released_pad_of_beta_one_is_the_base_candidates_ranked_by_the_guide(world: World, k: int) -> None:
    released, prompt = part("pad_released", beta=1.0, top_k=k), part("preference_prompt")

    def step(plan: Plan, tokens: list[int]) -> int:
        (base,) = plan.streams
        likeliest = np.argsort(brute.logprobs(world.twin, base, tokens))[::-1][:k]
        guide = brute.logprobs(world.twin, replace(base, deltas=(TWO,)), tokens)
        return int(likeliest[guide[likeliest].argmax()])

    greedy = world.samplings[0]
    expected = world.loop(lambda request, state: prompt.plan(request, state, PolicySpec()), step)
    assert world.by(released, aligned(TWO), greedy) == expected
    base = world.by(prompt, PolicySpec(), greedy)
    assert (expected == base) == (k == 1)
    assert world.by(part("pad_released", beta=0.0, top_k=k), aligned(TWO), greedy) == base


def test_pad_whose_reward_model_is_its_reference_is_the_base(world: World) -> None:
    known, rule, beta = aligned(NOTHING), Candidates("top_k", 6), world.draw.uniform(0.3, 3.0)
    scalar = part("pad_scalar", beta=beta, top_k=6)
    informed = part("pad_scalar", beta=beta, top_k=6, base_sees_preference=True)
    features = [part("pad", beta=beta, top_k=6, reference=name) for name in ("backbone", "base")]
    for sampling in world.samplings:
        plain = world.of(sampling, rule=rule)
        assert world.by(scalar, known, sampling) == plain
        assert world.by(scalar, aligned(TWO), sampling) != plain
        prompted = [part("preference_prompt").plan(*asked, PolicySpec()) for asked in world.asked]
        told = world.answers([replace(plan, candidates=rule) for plan in prompted], sampling)
        assert world.by(informed, known, sampling) == told
        for pad in features:
            assert world.by(pad, spec(NOTHING, NOTHING), sampling, world.stance(0.8, -1.0)) == plain
    assert world.of(world.samplings[0]) == world.of(world.samplings[0], rule=rule), "greedy, they do not matter"


@pytest.mark.parametrize("k", [None, 5])
def test_genarm_of_strength_zero_is_the_base(world: World, k: int | None) -> None:
    known, rule = world.stance(0.6, -0.9), Candidates("top_k", k) if k else ALL
    for sampling in world.samplings:
        base = world.of(sampling, rule=rule)
        assert world.by(part("genarm", strength=0.0, top_k=k), spec(ONE, TWO), sampling, known) == base
        assert world.by(part("genarm", strength=1.0, top_k=k), spec(ONE, TWO), sampling, known) != base


@pytest.mark.parametrize("deltas", [(), (ONE,)], ids=["base", "trained"])
def test_the_leaves_of_args_are_forwards_for_each_candidate(world: World, deltas: Deltas) -> None:
    known = replace(aligned(*deltas), raters={"bradley_terry": Rater()})
    args = part("args", weight=2.0, top_k=5)
    made = world.by(args, known, world.samplings[0])
    expected = world.loop(
        lambda request, state: args.plan(request, state, known),
        lambda plan, tokens: int(brute.step(world.twin, plan, tokens).argmax()),
    )
    assert made == expected != world.of(world.samplings[0], deltas)


# --- company ---------------------------------------------------------------------------------------


def test_an_answer_depends_on_its_own_seed_and_on_nobody_elses(world: World) -> None:
    """One of several streams, with seeds of their own, in any order, number, and company."""
    drawn = world.samplings[1]
    jobs = []
    for i in range(7):
        asked, steering = world.request(str(i)), part("cos", strength=0.6)
        plan = steering.plan(asked, UserState(profile=world.words((0, 3))), aligned(*((ONE,), (TWO,), ())[i % 3]))
        jobs.append(Job(str(i), replace(plan, sampling=replace(drawn, temperature=1.3, top_k=0, top_p=1.0, seed=i))))
    alone = {job.request: told(world.policy, [job], 1)[job.request] for job in jobs}
    assert len(set(alone.values())) > 3
    for size, budget in ((2, None), (5, None), (64, None), (1, 3000), (1, 100_000)):
        some = world.draw.sample(jobs, world.draw.randint(3, 7))
        assert told(world.policy, some, size, budget) == {job.request: alone[job.request] for job in some}


def told(policy: Policy, jobs: Sequence[Job], size: int, budget: int | None = None) -> dict[str, object]:
    made = Decoder(policy, size, budget).generate(jobs)
    return {job.request: tuple(r.tokens for r in made if r.request == job.request) for job in jobs}
