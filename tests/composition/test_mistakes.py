"""Every mistake is told, all at once, each in one line that names the thing and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from personalign.composition.compose import compose
from personalign.composition.validate import IllegalComposition
from personalign.contracts import UserError

ONE = [
    ("sampling.topk=3", "sampling.topk=3: no such key; did you mean sampling.top_k"),
    ("+typo=1", "+typo=1: no such key"),
    ("top_p=1", "top_p=1: no such key; did you mean sampling.top_p?"),
    ("memroy=keep", "memroy=keep: no such key; did you mean memory?"),
    ("memory=kep", "memory=kep: memory has no choice kep; did you mean keep?"),
    ("memory=[stance,kep]", "memory has no choice kep; did you mean keep?"),
    ("memory=null", "memory=null: memory has no choice None; did you mean none?"),
    ("memory=[keep,keep]", "memory=[keep,keep]: a choice is named twice"),
    ("memory=[none,keep]", "memory=[none,keep]: none stands alone"),
    ("generation=[plain]", "generation has no choice ['plain']"),
    ("generation=3", "generation has no choice 3"),
    ("scale=null", "scale has no choice None; there is cpu, full"),
    ("reward=exact", "reward=exact: write reward@guide=... or reward@truth=..."),
    ("guide=exact", "guide=exact: write reward@guide=..."),
    ("reward@foo=exact", "no group reward@foo; did you mean reward@"),
    ("hydra/launcher=x", "no group hydra/launcher"),
    ("+memory=keep", "+memory=keep: memory is a group already, write it without +"),
    ("~memory", "~memory: write memory=none"),
    ("~debug", "~debug: write debug=null"),
    ("~seed", "~seed: is always there"),
    ("+seed=1", "+seed=1: is always there"),
    ("seed=0,1", "seed=0,1: one value is expected; several belong in a sweep file's grid"),
    ("seed", "seed: not of the form key=value"),
    ("name=a=b", "name=a=b: not of the form key=value"),
    ("seed=-1", "seed=-1: must be at least 0"),
    ("seed=true", "seed=true: must be a whole number"),
    ("seed='1'", 'seed="1": must be a whole number'),
    ("seed=", 'seed="": must be a whole number'),
    ("seed=1.5", "seed=1.5: must be a whole number"),
    ("seed=null", "seed=null: must be a whole number"),
    ("precision=fp16", "precision=\"fp16\": must be 'bf16' or 'fp32'"),
    ("sampling=3", "sampling=3: holds keys: temperature, top_k, top_p, max_new_tokens, n"),
    ("sampling={top_k: a}", 'sampling.top_k="a": must be a whole number'),
    ("sampling={topk: 1}", "sampling={topk: 1}.topk: no such key; did you mean sampling.top_k"),
    ("requests.limit=0", "requests.limit=0: must be at least 1"),
    ("data.share=2", "data.share=2: must be at most 1"),
    ("data.share=nan", "data.share=NaN: must be a finite number"),
    ("data.dimensions=x", 'data.dimensions="x": must be a list'),
    ("data.dimensions=[a,1]", "data.dimensions.1=1: must be text"),
    ("data.mixture={long: x}", 'data.mixture.long="x": must be a number'),
    ("data.mixture=null", "data.mixture=null: must be a mapping"),
    ("~data.mixture.nope", "~data.mixture.nope: no such key; did you mean data.mixture"),
    ("generation.beta=2", "generation.beta=2: no such key; generation=steer would take it"),
    ("memory.keep.k=3", "memory.keep.k=3: memory=keep is not chosen"),
    ("memory.kept.k=3", "memory.kept.k=3: memory has no choice kept; did you mean keep?"),
    ("memory.keep=3", "memory.keep=3: holds keys of its own; choose it as memory=..."),
    ("data._target_=a.b", "data._target_=a.b: is set by the choices of the groups"),
    ("choices.data=b", "choices.data=b: is set by the choices of the groups"),
    ("name=${nope}", "name: Interpolation key 'nope' not found"),
    ("paths.cache=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
    ("paths.runs=???", "paths.runs must be given: set paths.runs=..."),
    ("trainer.strategy=horovod", "trainer.strategy=\"horovod\": must be 'none', 'ddp' or 'deepspeed'"),
]


@pytest.mark.parametrize(("override", "said"), ONE, ids=[override for override, _ in ONE])
def test_one_mistake_is_one_line(house: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not isinstance(caught.value, IllegalComposition)


def test_all_are_told_at_once(house: Path) -> None:
    with pytest.raises(UserError) as caught:
        compose(["alignment=online", "foo=1", "seed=-1", "data.share=2", "scale=ful", "name=${nope}"])
    lines = str(caught.value).splitlines()
    for said in ("foo=1:", "seed=-1:", "data.share=2:", "scale=ful:", "name:", "alignment.online.steps must be given"):
        assert sum(line.startswith(said) for line in lines) == 1
    assert "alignment=online needs policy.aligned: add alignment=train" in lines
    assert len(lines) == 8


def test_an_unknown_choice_causes_no_other_complaint(house: Path) -> None:
    with pytest.raises(UserError) as caught:
        compose(["generation=stear", "generation.beta=2", "memory.keep.k=a", "memory=keep"])
    assert str(caught.value).splitlines() == [
        "generation=stear: generation has no choice stear; did you mean steer?",
        'memory.keep.k="a": must be a whole number',
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n  b: 2\n", "mine.yaml, line 2: mapping values are not allowed"),
        ("seed: [1\n", "mine.yaml, line 2: "),
        ("seed: 1\nseed: 2\n", "mine.yaml, line 2: found duplicate key seed"),
        ("- seed\n", "mine.yaml: a mapping of keys to values is expected"),
        ("name: ${\n", "mine.yaml: "),
        ("seed: !!binary aGVsbG8=\n", "mine.yaml: seed: a value of type bytes is neither text nor a number"),
        ("data: {dimensions: [!!binary aGVsbG8=]}\n", "mine.yaml: data.dimensions.0: a value of type bytes"),
        ("data:\n  mixture: {!!binary aGVsbG8=: 1}\n", "mine.yaml: data.mixture: the key b'hello' is neither text"),
        ("seed: !!python/object/apply:pathlib.PosixPath [a]\n", "mine.yaml: seed: a value of type PosixPath"),
        ("seed: !!timestamp 2020-01-01\n", "mine.yaml: seed: Value 'date' is not a supported primitive type"),
        ("data: {dimensions: !!set {a}}\n", "mine.yaml: data.dimensions: Value 'set' is not a supported"),
        ("? !!timestamp 2020-01-01\n: 1\n", "mine.yaml: Incompatible key type 'date'"),
        ("seed: 2020-01-01\n", 'seed="2020-01-01": must be a whole number'),
        ("seed: !!bool maybe\n", "mine.yaml: a value that is not of its type 'maybe'"),
        ("!!binary aGVsbG8=\n", "mine.yaml: a value that is not of its type"),
        ("sead: 1\n", "mine.yaml: sead: no such key; did you mean seed?"),
        ("sampling:\n  topk: 1\n", "mine.yaml: sampling.topk: no such key; did you mean sampling.top_k"),
        ("seed: '1'\n", 'seed="1": must be a whole number'),
        ("memory: keep\n", "mine.yaml: memory: holds keys of its own; choose it as memory=..."),
        ("memory: {keep: {k: 3}}\n", "mine.yaml: memory.keep: memory=keep is not chosen"),
        ("generation: {_target_: a.B}\n", "generation._target_: is set by the choices of the groups"),
        ("defaults:\n  - memory: keep\n", "mine.yaml: defaults: memory: write '- override /group: choice'"),
        ("defaults: keep\n", "mine.yaml: defaults: keep: write '- override /group: choice'"),
        ("defaults:\n  - override /memroy: keep\n", "mine.yaml: defaults: no group memroy; did you mean memory?"),
        ("defaults:\n  - override /memory: kep\n", "mine.yaml: memory: memory has no choice kep; did you mean keep?"),
    ],
)
def test_mistakes_of_a_file_name_it(house: Path, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        compose([], path)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_text(house: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"seed: \xff\n")
    with pytest.raises(UserError, match=r"mine\.yaml: byte 6 is not UTF-8"):
        compose([], path)


def test_a_file_that_is_not_there(own_house: Path) -> None:
    (own_house / "experiments" / "steered.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"steerd\.yaml: no such file.*did you mean steered\?"):
        compose([], "experiments/steerd.yaml")


def test_a_broken_yaml_of_a_choice_is_named(own_house: Path) -> None:
    (own_house / "conf" / "generation" / "plain.yaml").write_text("a: [\n")
    with pytest.raises(UserError, match=r"generation/plain\.yaml, line 2"):
        compose()


def test_a_choice_that_holds_what_is_no_plain_data_is_named(own_house: Path) -> None:
    path = own_house / "conf" / "data" / "users.yaml"
    path.write_text(path.read_text().replace("share: 0.5", "share: !!binary aGVsbG8="))
    with pytest.raises(
        UserError, match=r"data/users\.yaml: share: a value of type bytes is neither text nor a number$"
    ):
        compose()


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("_target_: {m}.Steer\nbeta: 1.0\nmode: a\n", "generation.where is missing"),
        ("_target_: {m}.Plain\nbeta: 1.0\n", "generation.beta: no such key"),
        ("_target_: {m}.Plane\n", "no such class"),
        ("beta: 1.0\n", "generation: a part with a _target_ is expected"),
    ],
)
def test_a_yaml_that_does_not_match_its_class(own_house: Path, yaml: str, said: str) -> None:
    module = compose().generation._target_.rpartition(".")[0]
    (own_house / "conf" / "generation" / "plain.yaml").write_text(yaml.format(m=module))
    with pytest.raises(UserError, match=said):
        compose()


def test_an_overlay_with_a_defaults_list_is_refused(own_house: Path) -> None:
    (own_house / "conf" / "debug" / "fast.yaml").write_text("# @package _global_\ndefaults: [_self_]\nseed: 1\n")
    with pytest.raises(UserError, match="an overlay holds values alone"):
        compose(["debug=fast"])
