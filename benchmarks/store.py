"""Reading one user's events from a store of 1,000 users beside one of 100,000, as a ratio; and forgetting one.

    personalign bench store
    personalign bench store -- --users 1000 10000 --reads 200

All users' first events are written before anybody's second, so that nobody's lie together by chance. The larger store
takes about a gigabyte of the temporary folder (TMPDIR) and some minutes to fill. Forgetting writes the whole file
anew, so that it does depend on the number of users.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from personalign.store.store import Store
from personalign.types import Event

WORDS = ["the", "a", "river", "winter", "garden", "letter", "teacher", "window", "market", "walks", "keeps", "finds"]


def filled(path: Path, users: int, events: int, words: int) -> Store:
    """A store with so many events of each user, each a text of so many words."""
    draw = random.Random(0)
    store = Store(path, create=True)
    for turn in range(events):
        texts = (" ".join(draw.choices(WORDS, k=words)) for _ in range(users))
        store.add(
            Event(id=f"{user}-{turn}", user=f"user{user}", time=turn, kind="text", payload={"text": text})
            for user, text in enumerate(texts)
        )
    return store


def reading(store: Store, users: int, reads: int, draw: random.Random) -> list[float]:
    """Milliseconds of reading the events of users drawn by chance, one after the other."""
    took = []
    for _ in range(reads):
        user = f"user{draw.randrange(users)}"
        started = time.perf_counter()
        store.events(user)
        took.append(1000 * (time.perf_counter() - started))
    return took


def forgetting(store: Store) -> float:
    """Seconds until nothing is left of one user."""
    started = time.perf_counter()
    store.forget("user0")
    return time.perf_counter() - started


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--users", type=int, nargs="+", default=[1_000, 100_000], help="the first is compared with")
    made.add_argument("--events", type=int, default=20, help="of each user")
    made.add_argument("--words", type=int, default=30, help="of each event's text")
    made.add_argument("--reads", type=int, default=1000, help="users read from each store in each turn")
    made.add_argument("--repeats", type=int, default=5, help="how often all stores are measured in turn")
    return made.parse_args()


def main() -> None:
    asked = options()
    print(f"{asked.events} events of {asked.words} words for each user; medians of {asked.repeats} times {asked.reads}")
    with tempfile.TemporaryDirectory() as folder:
        stores = {n: filled(Path(folder) / f"{n}.db", n, asked.events, asked.words) for n in asked.users}
        draw = random.Random(1)
        turns = [{n: reading(store, n, asked.reads, draw) for n, store in stores.items()} for _ in range(asked.repeats)]
        medians = {n: [statistics.median(turn[n]) for turn in turns] for n in stores}
        for n, store in stores.items():
            ratio = statistics.median(a / b for a, b in zip(medians[n], medians[asked.users[0]], strict=True))
            read = f"p50 of one user {statistics.median(medians[n]):7.3f} ms   ratio {ratio:6.2f}"
            size = store.totals().bytes / 1e6
            print(f"{n:8d} users, {size:7.1f} MB: {read}   forgetting one {forgetting(store):6.2f} s", flush=True)
            store.close()


if __name__ == "__main__":
    main()
