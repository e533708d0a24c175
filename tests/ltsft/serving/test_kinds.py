"""Every kind of target task: its answers beside the offline composition's, over HTTP, and what each refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from ltsft.base import Base
from ltsft.composition.compose import composed
from ltsft.objectives.registry import OBJECTIVES
from ltsft.release.release import Release
from ltsft.serving.answers import Input, Output, RefusedInputError
from ltsft.serving.engine import Admitted, Engine
from ltsft.serving.limits import Limits
from ltsft.serving.readers.registry import reader_of
from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app
from ltsft.sft.files import load_sft

TEXT, OTHER = "bako dedas gilik .", "gilik dedas ."
CONTEXT = "bako dedas gilik . gilik bako dedas ."
ASKED: dict[str, list[Input]] = {
    "words": [Input(text=TEXT), Input(words=("bako", "dedas"))],
    "mood": [Input(text=TEXT), Input(text=OTHER)],
    "nli": [Input(text=TEXT, pair=OTHER), Input(text=OTHER, pair=TEXT)],
    "qa": [Input(question="gilik?", context=CONTEXT), Input(question="bako", context=CONTEXT * 4)],
}


def asked_of(target_task: str) -> list[Input]:
    return ASKED.get(target_task, ASKED["words"])


def same(a: list[Output], b: list[Output]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_all_kinds_share_one_encoder_and_give_the_bits_of_the_offline_composition_whatever_was_before(
    base: Base, engine: Engine, full_shelf: Any
) -> None:
    ready = [engine.admit(release, full_shelf) for release in full_shelf.released.values()]
    encoders = {id(admitted.model.get_input_embeddings().weight) for admitted in ready}
    assert len(encoders) == 1, "there is one resident base"
    assert len({admitted.composition.objective for admitted in ready}) == 5
    expected: dict[Admitted, tuple[list[Any], list[Output]]] = {}
    for admitted in ready:
        composition, prepared = admitted.composition, map(admitted.reader.prepare, asked_of(admitted.release.slot[1]))
        pieces = sorted((p for one in prepared for p in one.pieces), key=lambda piece: len(piece.input_ids))
        model = OBJECTIVES[composition.objective].new_model(base, composition.labels, seed=3).eval()
        parts = [(load_sft(full_shelf.fetch(part)), part.weight) for part in composition.parts]
        with composed(model, parts, base=base.ref), torch.inference_mode():
            expected[admitted] = pieces, admitted.reader.forward(model, pieces)

    for admitted in random.Random(1).choices(ready, k=50):
        pieces, wanted = expected[admitted]
        assert same(engine.run(admitted, pieces), wanted), admitted.release.slot


def test_releases_of_one_task_sft_share_its_head_and_a_head_that_does_not_fit_is_refused(
    engine: Engine, full_shelf: Any
) -> None:
    from ltsft.errors import CompositionError

    ready = {slot: engine.admit(release, full_shelf) for slot, release in full_shelf.released.items()}
    models = {slot.target_task: {id(a.model) for s, a in ready.items() if s[1] == slot[1]} for slot in ready}
    assert {name: len(ids) for name, ids in models.items()} == dict.fromkeys(models, 1)
    release = next(r for s, r in full_shelf.released.items() if s.target_task == "ner")
    as_other = release.composition.model_copy(update={"objective": "dp"})
    with pytest.raises(CompositionError, match=r"head arcs\.weight is missing"):
        engine.admit(Release(1, as_other), full_shelf)


@pytest.fixture
def client(make_service: Callable[..., Service], full_shelf: Any) -> TestClient:
    return TestClient(create_app(make_service(full_shelf)), raise_server_exceptions=False)


def one(client: TestClient, target_task: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{target_task}/aa", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json()["results"][0])


def test_a_tree_has_one_root_heads_within_the_sentence_and_offsets(client: TestClient) -> None:
    words = one(client, "dp", text=TEXT)["words"]
    assert [TEXT[w["start"] : w["end"]] for w in words] == TEXT.split()
    assert [w["head"] for w in words].count(0) == 1
    assert all(0 <= w["head"] <= len(words) and w["head"] != n for n, w in enumerate(words, 1))
    assert all(w["label"] in ("nsubj", "obj", "root", "punct") and 0 < w["score"] <= 1 for w in words)


def test_entities_are_spans_of_words_with_offsets_as_their_labels_say(client: TestClient) -> None:
    text = "bako dedas gilik bako vidu rano mitas ."
    sent = one(client, "ner", words=text.split())
    found = one(client, "ner", text=text)
    assert found["entities"], "the random head finds some"
    for entity, as_words in zip(found["entities"], sent["entities"], strict=True):
        inside = found["words"][entity["start_word"] : entity["end_word"]]
        assert entity["text"] == text[entity["start"] : entity["end"]] == " ".join(w["text"] for w in inside)
        assert {w["label"][2:] for w in inside} == {entity["label"]}
        assert entity["score"] == min(w["score"] for w in inside)
        assert (as_words["text"], as_words["start"]) == (entity["text"], None)
    covered = {n for e in found["entities"] for n in range(e["start_word"], e["end_word"])}
    assert [w["label"] == "O" for w in found["words"]] == [n not in covered for n in range(len(found["words"]))]


def test_texts_and_pairs_get_a_label_with_the_probability_of_each(client: TestClient) -> None:
    for name, body in (("mood", {"text": TEXT}), ("nli", {"text": TEXT, "pair": OTHER})):
        answer = one(client, name, **body)
        assert sum(answer["scores"].values()) == pytest.approx(1)
        assert answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]]
    assert one(client, "nli", text=OTHER, pair=TEXT)["scores"] != one(client, "nli", text=TEXT, pair=OTHER)["scores"]


def test_an_answer_is_a_part_of_its_context_also_of_one_that_takes_several_windows(client: TestClient) -> None:
    for context, is_long in ((CONTEXT, False), (CONTEXT * 6, True)):
        answer = one(client, "qa", question="gilik?", context=context)
        assert answer["text"]
        assert answer["text"] == context[answer["start"] : answer["end"]]
        assert 0 < answer["score"] <= 1
        assert (answer["pieces"] > 1) == is_long


def test_a_batch_mixes_kinds_and_the_list_says_what_each_takes(client: TestClient) -> None:
    inputs = [{"target_task": name, **asked_of(name)[0].as_row()} for name in ("dp", "ner", "mood", "nli", "qa", "pos")]
    answers = client.post("/v1/batch", json={"inputs": [{"language": "bb", **item} for item in inputs]}).json()
    assert [a["target_task"] for a in answers["results"]] == [item["target_task"] for item in inputs]
    alone = client.post("/v1/nli/bb", json={k: v for k, v in inputs[3].items() if k != "target_task"}).json()
    assert alone["results"][0]["label"] == answers["results"][3]["results"][0]["label"]
    takes = {m["target_task"]: m["takes"] for m in client.get("/v1/models").json()["models"]}
    assert takes["dp"] == takes["ner"] == takes["pos"] == ["text", "words"]
    assert (takes["mood"], takes["nli"], takes["qa"]) == (["text"], ["text and pair"], ["question and context"])


BODIES: dict[str, dict[str, Any]] = {
    "text": {"text": TEXT},
    "words": {"words": ["bako"]},
    "text and pair": {"text": TEXT, "pair": OTHER},
    "question and context": {"question": OTHER, "context": CONTEXT},
}


def test_a_form_of_another_target_task_and_bad_fields_of_every_form_are_4xx_in_one_shape(client: TestClient) -> None:
    for model in client.get("/v1/models").json()["models"]:
        for form, body in BODIES.items():
            response = client.post(f"/v1/{model['target_task']}/{model['language']}", json=body)
            if form in model["takes"]:
                assert response.status_code == 200, (model["target_task"], form)
                continue
            assert response.status_code == 409
            wanted = f"this target task takes {' or '.join(model['takes'])}, got {form}"
            assert response.json() == {"error": {"code": "other_form", "message": wanted}}
    for body, message in (
        ({"text": "a", "pair": 5}, "body.pair: Input should be a valid string"),
        ({"text": "a", "pair": " "}, "body.pair: needs a character that is not white space"),
        ({"question": "a"}, "body.context: Field required"),
        ({"question": "a", "context": "b\u0000"}, "no control characters"),
        ({"question": "a", "context": "b", "text": "c"}, "Extra inputs"),
        ({"inputs": [{"text": "a", "pair": ""}]}, "body.inputs.0.pair"),
        ({"question": "a " * 5_000, "context": "b " * 6_000}, "22000 characters, at most 20000"),
    ):
        for target_task in ("nli", "qa", "pos"):
            response = client.post(f"/v1/{target_task}/aa", json=body)
            assert response.status_code == 422, body
            assert message in response.json()["error"]["message"], (body, response.text)


@pytest.mark.parametrize(
    ("target_task", "item"),
    [
        ("mood", Input(text="bako " * 60)),
        ("nli", Input(text="bako " * 40, pair=TEXT)),
        ("dp", Input(words=("bakodedasgilik",) * 20)),
        ("qa", Input(question="gilik " * 30, context=CONTEXT)),
    ],
)
def test_what_does_not_fit_is_cut_and_said_so_or_refused_by_setting(
    base: Base, full_shelf: Any, target_task: str, item: Input
) -> None:
    composition = next(r.composition for s, r in full_shelf.released.items() if s.target_task == target_task)
    assert reader_of(composition, base.tokenizer, Limits()).prepare(item).is_cut
    assert not reader_of(composition, base.tokenizer, Limits()).prepare(asked_of(target_task)[0]).is_cut
    strict = reader_of(composition, base.tokenizer, Limits(long_texts="refuse"))
    with pytest.raises(RefusedInputError, match="longer than the 32 sub-words"):
        strict.prepare(item)
    assert strict.prepare(asked_of(target_task)[0]).pieces


def test_a_sentence_of_more_words_than_a_parser_takes_is_refused(base: Base, full_shelf: Any) -> None:
    composition = next(r.composition for s, r in full_shelf.released.items() if s.target_task == "dp")
    with pytest.raises(RefusedInputError, match="has 31 words, the parser takes 30 at most"):
        reader_of(composition, base.tokenizer, Limits()).prepare(Input(words=("bako",) * 31))
