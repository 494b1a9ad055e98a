"""Answers of an endpoint: those of the model behind it, what it is never asked, and how it may fail."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalign import Experiment, compose
from personalign.contracts import UserError
from personalign.decoding.decoder import Decoder
from personalign.decoding.remote import RemoteDecoder, refuses
from personalign.decoding.rows import Job
from personalign.plans import Candidates, Chat, Plan, Sampling, Soft, Stream, Tokens
from personalign.policy.loading import Tiny
from personalign.policy.policy import Policy
from personalign.runtime.endpoint import Endpoint
from personalign.types import Message

KEY = "sk-very-secret-0123456789"
SMALL = [
    "precision=fp32",
    "sampling.max_new_tokens=12",
    "requests.limit=2",
    "requests.pairs=1",
    "data.users=4",
    "data.pool=shipped",
    "reward@guide=none",
]
REMOTE = ["model=endpoint", "model.model=m", "model.backoff=0.01", "model.timeout=5.0", "model.retries=2"]


class Server:
    """An endpoint whose model is `answers`; it remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]] = lambda body: said("Soup.")
        self.asked: list[dict[str, Any]] = []
        self.lost = 0  # bytes of a reply that do not come
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked.append(body)
                    outer.keys.add(self.headers.get("Authorization"))
                    status, made = outer.answers(body)
                reply = json.dumps(made).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply) + outer.lost))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def said(text: str, finish: str = "stop", **usage: int) -> tuple[int, dict[str, Any]]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {"choices": [choice], **({"usage": usage} if usage else {})}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PERSONALIGN_MODEL_URL", made.url)
    monkeypatch.setenv("PERSONALIGN_MODEL_KEY", KEY)
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Callable[..., RemoteDecoder]:
    def made(**changes: Any) -> RemoteDecoder:
        values: dict[str, Any] = {
            "who": "endpoint",
            "url": None,
            "url_variable": "PERSONALIGN_MODEL_URL",
            "key_variable": "PERSONALIGN_MODEL_KEY",
            "model": "m",
            "limit_name": "max_tokens",
            "timeout": 5.0,
            "retries": 2,
            "backoff": 0.01,
            "concurrency": 4,
            "cache": str(tmp_path / "cache"),
        }
        return RemoteDecoder(Endpoint(**{**values, **changes}), batch_size=2)

    return made


def plan(text: str, **sampling: Any) -> Plan:
    return Plan((Stream((Chat((Message("user", text),)),)),), sampling=Sampling(**sampling))


def served_by(policy: Policy) -> Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]:
    """Our own decoder as the endpoint's model."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        sampling = Sampling(max_new_tokens=body["max_tokens"])
        job = Job("r", Plan((Stream((Chat(messages),)),), sampling=sampling))
        (made,) = Decoder(policy, 1).generate([job])
        finish = "stop" if made.stop == "eos" else "length"
        prompt = len(policy.encode(messages))
        return said(made.text, finish, prompt_tokens=prompt, completion_tokens=len(made.tokens))

    return answer


def written(record: dict[str, Any], folder: Path) -> list[tuple[str, str, str, int]]:
    path = folder / record["identity"] / "answers.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["request"], row["text"], row["stop"], row["cost"]["new_tokens"]) for row in rows]


@pytest.mark.parametrize(
    "part",
    [
        ["memory=statement", "generation=preference_prompt"],
        ["memory=[statement,bm25]", "generation=agent"],
    ],
    ids=["one step", "a workflow"],
)
def test_a_run_on_an_endpoint_is_that_of_the_model_behind_it(server: Server, tmp_path: Path, part: list[str]) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "conf" / "model" / "tiny.yaml").read_text())
    tiny = Tiny(**{key: value for key, value in values.items() if key != "_target_"})
    server.answers = served_by(tiny.build(tmp_path, "fp32"))
    paths = [f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    own = Experiment(compose([*SMALL, *part, *paths, "model=tiny"])).run()
    remote = Experiment(compose([*SMALL, *part, *paths, *REMOTE])).run()
    assert written(remote, tmp_path) == written(own, tmp_path)
    left_out = {"perplexity", "tokens_per_second", "forward_tokens_per_token"}
    assert remote["metrics"] == {k: v for k, v in own["metrics"].items() if k not in left_out}
    assert own["metrics"].keys() >= left_out
    assert remote["cost"]["new_tokens"] == own["cost"]["new_tokens"]
    assert server.keys == {f"Bearer {KEY}"}
    places = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in places), "the key stands nowhere"


def test_samples_are_seeded_and_what_was_answered_is_not_asked_again(
    server: Server, make: Callable[..., RemoteDecoder]
) -> None:
    server.answers = lambda body: said(str(body["seed"]))
    jobs = [Job("a", plan("Why?", temperature=0.7, top_p=0.9, n=3)), Job("b", plan("Why?", temperature=0.7, n=1))]
    made = make().generate(jobs)
    assert [(r.request, r.sample) for r in made] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert len({r.text for r in made}) == 4
    assert [r.tokens for r in made] == [()] * 4
    assert {body.get("top_p") for body in server.asked} == {0.9, None}
    assert [r.text for r in make().generate(jobs)] == [r.text for r in made]
    assert len(server.asked) == 4
    greedy = [Job("a", plan("Why?", n=2)), Job("b", plan("Why?"))]
    server.answers = lambda body: said("x", "length", prompt_tokens=5, completion_tokens=2)
    made = make().generate(greedy)
    assert [(r.text, r.stop, r.cost.forward_tokens, r.cost.new_tokens) for r in made] == [("x", "length", 7, 2)] * 3
    assert len(server.asked) == 5, "equal greedy plans are one question"
    assert "seed" not in server.asked[-1] and server.asked[-1]["temperature"] == 0.0


CHAT = (Chat((Message("user", "Why?"),)),)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (Plan((Stream(CHAT), Stream((Chat((Message("user", "What?"),)),)))), "2 streams"),
        (Plan((Stream(CHAT, deltas=(("dpo", 1.0),)),)), "adapters"),
        (Plan((Stream(CHAT, head="value"),)), "head"),
        (Plan((Stream(CHAT, model="guide"),)), "further model"),
        (Plan((Stream((Soft("soft"), *CHAT)),)), "more than chat"),
        (Plan((Stream((Tokens((1, 2)),)),)), "more than chat"),
        (Plan((Stream(CHAT),), Candidates("top_k", k=3)), "restricts the candidates"),
        (Plan((Stream(CHAT),), sampling=Sampling(top_k=5)), "top_k"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_before_anything_is_asked(
    refused: Plan, reason: str, server: Server, make: Callable[..., RemoteDecoder]
) -> None:
    assert reason in (refuses(refused) or "")
    with pytest.raises(UserError, match=f"request 'b' cannot be answered by model=endpoint: .*{reason}") as caught:
        make().generate([Job("a", plan("Hi")), Job("b", refused)])
    assert "\n" not in str(caught.value) and not server.asked


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["memory=statement", "alignment=dpo"], "alignment=dpo needs model.weights"),
        (["memory=statement", "generation=cos"], "generation=cos needs model.weights"),
        (["memory=stance_stated", "generation=drift"], "generation=drift needs model.weights"),
        (["reward@guide=implicit"], "reward@guide=implicit needs model.weights"),
        (["memory=summary"], "memory=summary needs model.weights"),
        (["memory_budget=50"], "memory_budget=50 needs model.weights, which model=endpoint has elsewhere"),
    ],
)
def test_a_composition_that_needs_weights_is_illegal(words: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        compose([*SMALL, *REMOTE, *words])
    with pytest.raises(UserError, match="model=none: nobody would answer: use model="):
        compose(["model=none"])


@pytest.mark.parametrize(
    "url", ["http://me:{}@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key={}", "ftp://{}/v1", "{}", "http://{} /v1"]
)
@pytest.mark.parametrize("words", [["model.url"], ["reward@guide=judge", "guide.model=m", "guide.url"]])
def test_an_address_that_may_hold_a_password_is_refused_before_anything_is_written(url: str, words: list[str]) -> None:
    """And not shown: a composition is kept with the run."""
    *chosen, key = words
    with pytest.raises(UserError, match="must be like http://localhost:8000/v1, without user, password") as caught:
        compose([*SMALL[:-1], *REMOTE, "memory=statement", *chosen, f"{key}='{url.format(KEY)}'"])
    assert str(caught.value).startswith(f"{key}=***: ") and KEY not in str(caught.value)


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_told(
    server: Server, make: Callable[..., RemoteDecoder]
) -> None:
    turns = iter([(503, {"error": {"message": "busy"}}), (429, {}), said("Soup.")])
    server.answers = lambda body: next(turns)
    (made,) = make(concurrency=1).generate([Job("a", plan("Hi"))])
    assert made.text == "Soup." and len(server.asked) == 3
    server.answers = lambda body: (500, {"error": {"message": f"broken, {KEY}"}})
    with pytest.raises(UserError, match=r"^endpoint: .* failed 3 times in a row, at last with status 500") as caught:
        make().generate([Job("b", plan("Ho"))])
    assert KEY not in str(caught.value)
    server.answers = lambda body: (401, {"error": {"message": "no"}})
    with pytest.raises(UserError, match="PERSONALIGN_MODEL_KEY"):
        make().generate([Job("c", plan("Hu"))])
    with pytest.raises(UserError, match="cannot be reached"):
        make(url="http://127.0.0.1:1/v1").generate([Job("d", plan("Hu"))])
    assert make(url="http://127.0.0.1:1/v1").generate([Job("a", plan("Hi"))])[0].text == "Soup.", "kept"


def test_a_reply_that_breaks_off_is_asked_for_again(server: Server, make: Callable[..., RemoteDecoder]) -> None:
    def once(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        server.lost = 50 if len(server.asked) == 1 else 0
        return said("Soup.")

    server.answers = once
    (made,) = make(concurrency=1).generate([Job("a", plan("Hi"))])
    assert made.text == "Soup." and len(server.asked) == 2


def test_half_a_character_is_replaced(server: Server, make: Callable[..., RemoteDecoder]) -> None:
    """JSON can hold one, no file of text can."""
    server.answers = lambda body: said("So \ud83d up.", prompt_tokens=-3, completion_tokens=True)
    (made,) = make().generate([Job("a", plan("Hi"))])
    assert made.text == "So ? up." and made.cost.forward_tokens == made.cost.new_tokens == 0


def test_what_was_answered_before_a_failure_is_kept(server: Server, make: Callable[..., RemoteDecoder]) -> None:
    jobs = [Job(name, plan(name)) for name in "abcd"]
    server.answers = lambda body: (400, {}) if body["messages"][0]["content"] == "d" else said("Soup.")
    with pytest.raises(UserError, match="status 400"):
        make(concurrency=1).generate(jobs)
    before = len(server.asked)
    server.answers = lambda body: said("Soup.")
    assert [r.text for r in make(concurrency=1).generate(jobs)] == ["Soup."] * 4
    assert len(server.asked) == before + 1
