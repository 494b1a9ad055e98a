"""A composition is legal when every need is provided earlier on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from personalign.composition.compose import compose
from personalign.composition.validate import IllegalComposition, problems
from personalign.contracts import UserError

STEPS = "alignment.online.steps=1"


@pytest.mark.parametrize(
    "legal",
    [
        [],
        ["memory=stance", "generation=steer", "alignment=train"],
        ["memory=stance", "reward@guide=exact"],
        ["alignment=train", "reward@guide=ratio"],
        ["alignment=[train,online]", "reward@guide=ratio", STEPS],
        ["memory=stance", "alignment=[train,online]", "reward@guide=exact", STEPS],
        ["memory=read", "generation=steer", "alignment=[head,train]", "reward@guide=exact"],
        ["memory=read", "alignment=[head,train,online]", "reward@guide=exact", STEPS],
        ["trainer=ddp", "devices=2"],
    ],
)
def test_what_is_legal(house: Path, legal: list[str]) -> None:
    assert problems(compose(legal)) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["generation=steer", "alignment=train"], ["generation=steer needs state.stance: add memory=read|stance"]),
        (["generation=steer", "memory=stance"], ["generation=steer needs policy.features: add alignment=train"]),
        (
            ["generation=steer", "memory=keep"],
            [
                "generation=steer needs state.stance: add memory=read|stance",
                "generation=steer needs policy.features: add alignment=train",
            ],
        ),
        (["reward@guide=exact"], ["reward@guide=exact needs state.stance: add memory=read|stance"]),
        (["reward@guide=ratio"], ["reward@guide=ratio needs policy.aligned: add alignment=train"]),
        (["reward@truth=none"], ["data=users needs reward.truth: use reward@truth=exact|ratio"]),
        (
            ["reward@truth=ratio"],
            ["reward@truth=ratio needs policy.aligned, which nothing before it can provide"],
        ),
        (
            ["alignment=[online,train]", "reward@guide=ratio", STEPS],
            [
                "alignment=online needs reward.guide: reward@guide=ratio comes later",
                "alignment=online needs policy.aligned: put alignment=train before it",
            ],
        ),
        (
            ["alignment=[train,online]", STEPS],
            ["alignment=online needs reward.guide: use reward@guide=exact|ratio"],
        ),
        (
            ["memory=read", "generation=steer", "alignment=train"],
            [
                "memory=read needs policy.heads.stance: add alignment=head",
            ],
        ),
        (
            ["memory=read", "alignment=[online,head,train]", "reward@guide=exact", STEPS],
            [
                "alignment=online needs reward.guide: reward@guide=exact comes later",
                "alignment=online needs policy.aligned: put alignment=train before it",
            ],
        ),
        (["devices=2"], ["devices=2 num_nodes=1: trainer=cpu is one process: use trainer=ddp"]),
        (["trainer.zero_stage=2"], ["trainer.zero_stage=2 does not go with trainer.strategy=none"]),
        (["trainer.strategy=deepspeed"], ["trainer.zero_stage=None does not go with trainer.strategy=deepspeed"]),
    ],
)
def test_what_is_not(house: Path, overrides: list[str], said: list[str]) -> None:
    with pytest.raises(IllegalComposition) as caught:
        compose(overrides)
    assert str(caught.value).splitlines() == said


def test_truth_reads_the_true_state_that_data_provides(own_house: Path) -> None:
    """Reward `exact` needs state.stance; as truth it has it from data, whatever memory knows."""
    users = own_house / "conf" / "data" / "users.yaml"
    assert problems(compose(["memory=none"])) == []
    users.write_text(users.read_text().replace(".Users", ".Blind"))
    module = next(own_house.glob("parts_*.py"))
    written = module.read_text()
    init = written[written.index("    def __init__") : written.index("class Keeper")]
    module.write_text(f"{written}\nclass Blind(Users):\n    provides = ('pairs',)\n{init}")
    with pytest.raises(IllegalComposition) as caught:
        compose(["memory=stance"])
    assert str(caught.value) == "reward@truth=exact needs truth, which nothing before it can provide"


def test_problems_of_a_composition_that_was_edited(house: Path) -> None:
    cfg = compose(["memory=[keep,stance]"])
    OmegaConf.set_struct(cfg, False)
    cfg.memory.keep.k = 0
    cfg.memory.keep.extra = 1
    del cfg.data["share"]
    del cfg["seed"]
    cfg.sampling.topk = 1
    cfg.odd = {}
    found = problems(cfg)
    assert sorted(line.split(":")[0] for line in found) == [
        "data.share is missing",
        "memory.keep.extra",
        "memory.keep.k=0",
        "odd",
        "sampling.topk",
        "seed is missing",
    ]


@pytest.mark.parametrize("scorer", ["lexicon", "exact", "implicit"])
def test_universal_values_are_scored_without_a_user_s_state(scorer: str) -> None:
    """Reward `exact` needs state.stance as guide; what it rates under `universal` holds for everyone."""
    assert problems(compose(["boundary=floor", f"reward@universal={scorer}"])) == []


def test_a_floor_needs_a_scorer() -> None:
    with pytest.raises(IllegalComposition, match=r"boundary=floor needs reward\.universal: use reward@universal=\w+"):
        compose(["boundary=floor", "reward@universal=none"])


def test_a_reward_provides_what_it_is_chosen_as() -> None:
    with pytest.raises(IllegalComposition, match=r"generation=best_of_n needs reward\.guide: use reward@guide=\w+"):
        compose(["generation=best_of_n", "reward@guide=none"])


def test_floors_of_the_boundary_are_those_that_violations_are_counted_by() -> None:
    words = ["boundary=floor", "evaluation.floors.harmlessness=-2.0"]
    assert compose(words).boundary.floors == {"harmlessness": -2.0}
    strict = compose([*words, "boundary.floors.harmlessness=-inf"])
    assert strict.boundary.floors.harmlessness == float("-inf") and strict.evaluation.floors.harmlessness == -2.0


ASKING = ["memory=stance_inferred", "feedback=simulated", "query=d_optimal"]


@pytest.mark.parametrize("query", ["random", "uncertainty", "d_optimal"])
def test_rounds_are_legal_with_feedback_query_and_posterior(query: str) -> None:
    assert problems(compose([*ASKING, f"query={query}", "rounds=2"])) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("feedback=none", "rounds=2 needs feedback: use feedback=simulated, or rounds=0"),
        ("query=none", "rounds=2 needs query: use query=d_optimal|random|uncertainty, or rounds=0"),
        ("memory=stance_stated", "query=d_optimal needs state.posterior: add memory=stance_inferred"),
        ("memory=[stance_stated] query=random", "rounds=2 needs state.posterior: add memory=stance_inferred"),
        ("asking.answers=1", "asking.answers=1: must be at least 2"),
    ],
)
def test_rounds_that_could_ask_nothing_are_refused(change: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([*ASKING, "rounds=2", *change.split()])
    assert str(caught.value).splitlines() == [said]


def test_without_rounds_nothing_is_asked_and_all_is_legal() -> None:
    assert problems(compose(ASKING)) == []
    with pytest.raises(IllegalComposition, match=r"query=d_optimal needs state\.posterior: add memory=stance_inferred"):
        compose(["memory=stance_stated", "query=d_optimal"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward@guide=none"], r"alignment=rloo needs reward\.guide: use reward@guide=\w+"),
        (
            ["reward@guide=exact"],
            r"reward@guide=exact needs state\.stance: add memory=",
        ),
        (["data=psoups_eval"], r"alignment=rloo needs prompts: use data=alignx_psoups\|exact_users\|jsonl"),
        (["alignment.rloo.samples=1"], r"alignment\.rloo\.samples=1: must be at least 2"),
    ],
)
def test_reinforcement_needs_a_guide_and_something_to_answer(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(["alignment=rloo", *overrides])


@pytest.mark.parametrize(
    "legal",
    [
        ["reward@guide=lexicon"],
        ["memory=[statement,stance_stated]", "generation=preference_prompt", "reward@guide=exact"],
        ["alignment=[pad,pad_stance_head,rloo]", "memory=stance_head", "reward@guide=exact"],
    ],
)
def test_the_guide_may_come_just_before_what_learns_from_it(legal: list[str]) -> None:
    assert problems(compose(["alignment=rloo", *legal])) == []


def test_alignment_may_need_something_of_the_prompts_that_generation_renders() -> None:
    compose(["alignment=ric", "generation=ric", "memory=stance_stated"])
    compose(["alignment=ric", "source=runs/0123456789abcdef"])
    with pytest.raises(IllegalComposition, match=r"^alignment=ric needs prompt\.targets: use generation=ric$"):
        compose(["alignment=ric"])


def test_two_stages_that_train_the_same_head_are_refused_before_one_is_trained() -> None:
    two = ["memory=history_vectors", "generation=history_prefix", "alignment=[pplug,e2p]"]
    with pytest.raises(
        UserError, match=r"^alignment=pplug and alignment=e2p both train policy\.heads\.history: choose one"
    ):
        compose(two)
    compose(["memory=lore_weights", "alignment=[lore,reward_head]"])


@pytest.mark.parametrize(
    ("generation", "stages", "first"),
    [
        ("pad", ["rloo", "pad"], "policy.features: put alignment=pad"),
        ("steering", ["vas", "bipo"], "policy.vectors: put alignment=bipo"),
        ("args", ["rloo", "reward_head"], "policy.heads.bradley_terry: put alignment=reward_head"),
    ],
)
def test_a_guide_that_reads_the_plan_waits_for_what_it_is_made_of(
    generation: str, stages: list[str], first: str
) -> None:
    words = ["memory=stance_stated", f"generation={generation}"]
    compose([*words, f"alignment=[{','.join(reversed(stages))}]"])
    compose([*words, f"alignment=[{','.join(stages)}]", "reward@guide=exact"])
    with pytest.raises(IllegalComposition) as caught:
        compose([*words, f"alignment=[{','.join(stages)}]"])
    assert str(caught.value) == (
        f"alignment={stages[0]} learns from reward@guide=implicit, which reads the plan of generation={generation} and "
        f"so needs {first} before it"
    )


def test_what_a_guide_is_needed_for_is_not_waited_for_by_it() -> None:
    """Values of the answers of what was trained before, under a guide that reads these answers' likelihood."""
    for stages in ("[dpo,vas]", "[rloo,vas]"):
        compose(["memory=stance_stated", "generation=vas", f"alignment={stages}"])
    with pytest.raises(IllegalComposition, match=r"^generation=pad needs policy\.features: add alignment=[\w|]+$"):
        compose(["memory=stance_stated", "generation=pad", "alignment=rloo"])
