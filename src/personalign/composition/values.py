"""Types of everything in a composition that is no part."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict, StringConstraints

from personalign.contracts import (
    NaturalInt,
    NonNegativeFloat,
    Placement,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Seed,
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SamplingValues(_Strict):
    """How tokens are drawn (see plans.Sampling)."""

    temperature: NonNegativeFloat
    top_k: NaturalInt
    top_p: PositiveFraction
    max_new_tokens: PositiveInt
    n: PositiveInt


class DecodingValues(_Strict):
    """How requests are grouped; no result depends on it, up to rounding."""

    grouping: Literal["fixed", "continuous"]
    batch_size: PositiveInt
    token_budget: PositiveInt
    prefix_tokens: NaturalInt | None


class AskingValues(_Strict):
    """What users are shown and asked in a round of feedback."""

    requests: PositiveInt
    answers: Annotated[int, Ge(2)]
    by: Literal["plan", "base"]
    temperature: PositiveFloat
    refit: bool


class TuneValues(_Strict):
    """Which strengths of generation are tried on validation requests, and which is best."""

    strengths: Annotated[list[int | float], MinLen(1)] | None
    by: Literal["truth", "guide"]
    requests: PositiveInt | None
    perplexity: PositiveFloat | None


class RequestValues(_Strict):
    """Which held-out requests are asked."""

    limit: PositiveInt | None
    pairs: PositiveInt | None


class PromptValues(_Strict):
    """Templates and prompts that several parts share."""

    preference: str
    placement: Placement
    attributes: dict[str, str]


class RatingValues(_Strict):
    """The scale of computed ratings, that rewards and memories share (see ratings.standard)."""

    center: dict[str, float]
    scale: dict[str, PositiveFloat]
    clip: PositiveFloat | None


class PathValues(_Strict):
    """Where things are written."""

    runs: str
    cache: str


class TrainerValues(_Strict):
    """Devices, and how processes share the work."""

    accelerator: Literal["cpu", "gpu"]
    strategy: Literal["none", "ddp", "deepspeed"]
    devices: PositiveInt
    num_nodes: PositiveInt
    process_group_backend: Literal["gloo", "nccl"] | None
    zero_stage: Literal[1, 2, 3] | None
    offload: bool


class LoggerValues(_Strict):
    """Where curves and tables are sent. W&B would refuse other names of a project when it begins the run."""

    kind: Literal["none", "csv", "wandb"]
    project: Annotated[str, StringConstraints(pattern=r"^[^/\\#?%:]{1,128}$")]
    entity: str | None
    offline: bool
    group: str | None


class Values(_Strict):
    """The top level of a composition without its parts."""

    name: str | None
    source: str | None
    seed: Seed
    precision: Literal["bf16", "fp32"]
    devices: PositiveInt
    micro_batch: PositiveInt
    rounds: NaturalInt
    asking: AskingValues
    memory_budget: PositiveInt | None
    sampling: SamplingValues
    decoding: DecodingValues
    tune: TuneValues
    requests: RequestValues
    prompts: PromptValues
    ratings: RatingValues
    paths: PathValues
    trainer: TrainerValues
    logger: LoggerValues
    choices: dict[str, str | list[str] | None]
