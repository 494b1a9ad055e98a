"""Make the pool of base answers that ships with `exact_users`, and print the scales of its ratings.

    python scripts/make_pool.py                     sample with the default model, write the shipped file
    python scripts/make_pool.py --statistics        read the shipped file, print center and scale alone

Overrides of the composition may follow, as in `personalign run`: model=hf model.name=... data.temperature=0.8
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

from personalign.contracts import UserError
from personalign.data.exact_pool import SHIPPED, Pool, prompts, read_pool, write_pool
from personalign.data.exact_source import header, sample
from personalign.plans import Sampling
from personalign.ratings.dimensions import DIMENSIONS, rate


def make(path: Path, overrides: list[str]) -> None:
    """Sample `data.samples_per_prompt` answers to every prompt and write them with what made them."""
    from personalign import compose
    from personalign.policy.embedded import EMBEDDED
    from personalign.system import System

    cfg = compose(overrides)
    sampling = Sampling(
        temperature=cfg.data.temperature,
        top_p=cfg.data.top_p,
        max_new_tokens=cfg.data.max_new_tokens,
        n=cfg.data.samples_per_prompt,
        seed=cfg.seed,
    )
    answers = sample(System(cfg).sample, prompts(), sampling)
    model = {**cfg.model, "precision": cfg.precision}
    if embedded := EMBEDDED.get(cfg.model.get("name")):
        model |= {"file": embedded.file, "sha256": embedded.sha256}
    write_pool(path, header(model, sampling), answers)


def statistics(pool: Pool) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation of every dimension over all answers of a pool."""
    ratings = [rate(text) for texts in pool.answers.values() for text in texts]
    center = {name: _mean(rating[name] for rating in ratings) for name in DIMENSIONS}
    scale = {name: math.sqrt(_mean((r[name] - center[name]) ** 2 for r in ratings)) for name in DIMENSIONS}
    return center, scale


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="file to write or read")
    parser.add_argument("--statistics", action="store_true", help="sample nothing")
    parser.add_argument("overrides", nargs="*", help="overrides of the composition")
    given = parser.parse_args()
    try:
        if not given.statistics:
            make(given.out, given.overrides)
        for key, values in zip(("center", "scale"), statistics(read_pool(given.out)), strict=True):
            print(f"{key}:", *(f"  {name}: {value:.4f}" for name, value in values.items()), sep="\n")
    except UserError as error:
        raise SystemExit(f"make_pool: {error}") from None


if __name__ == "__main__":
    main()
