"""The HTTP service: answers, errors in one shape, limits, keys, and its own OpenAPI put to the test."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from ltsft.serving.service import Service
from ltsft.serving.web.app import create_app
from ltsft.serving.web.guard import ApiKeys

KEY = "a-key-of-sixteen-or-more"
JSON = {"content-type": "application/json"}


@pytest.fixture
def make_client(make_service: Callable[..., Service], shelf: Any) -> Iterator[Callable[..., TestClient]]:
    def make(*, keys: tuple[str, ...] = (), **limits: object) -> TestClient:
        app = create_app(make_service(shelf, **limits), keys=ApiKeys(keys))
        return TestClient(app, raise_server_exceptions=False)

    return make


def problem(response: Any) -> dict[str, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    assert response.headers["content-type"] == "application/json"
    return dict(body["error"])


def test_a_text_is_answered_word_by_word_with_offsets_scores_and_the_version(make_client: Any) -> None:
    answer = make_client().post("/v1/pos/bb", json={"text": "bako  dedas."}).json()

    assert (answer["target_task"], answer["language"], answer["version"]) == ("pos", "bb", 1)
    assert len(answer["composition"]) == 64
    words = answer["results"][0]["words"]
    assert [(w["text"], w["start"], w["end"]) for w in words] == [("bako", 0, 4), ("dedas", 6, 11), (".", 11, 12)]
    assert all(w["label"] in ("NOUN", "VERB", "ADJ", "PUNCT") and 0.25 <= w["score"] <= 1 for w in words)


def test_words_and_several_texts_and_several_languages_get_the_same_answers(make_client: Any) -> None:
    client = make_client()
    alone = client.post("/v1/pos/aa", json={"words": ["bako", "dedas"]}).json()["results"][0]["words"]
    several = client.post("/v1/pos/aa", json={"inputs": [{"text": "bako dedas"}, {"words": ["gilik"]}]}).json()
    inputs = [{"target_task": t, "language": c, "text": "bako dedas"} for t in ("pos", "coarse") for c in ("aa", "cc")]
    mixed = client.post("/v1/batch", json={"inputs": inputs}).json()["results"]

    labels = [word["label"] for word in alone]
    assert [w["start"] for w in alone] == [None, None]
    assert [w["label"] for w in several["results"][0]["words"]] == labels
    assert len(several["results"]) == 2
    assert [(m["target_task"], m["language"]) for m in mixed] == [(i["target_task"], i["language"]) for i in inputs]
    assert [w["label"] for w in mixed[0]["results"][0]["words"]] == labels


def test_what_answers_is_listed_with_what_stands_behind_it(make_client: Any) -> None:
    listed = make_client().get("/v1/models").json()["models"]
    assert [(m["target_task"], m["language"]) for m in listed] == sorted(
        ((t, c) for t in ("coarse", "pos") for c in ("aa", "bb", "cc")), key=lambda slot: slot[::-1]
    )
    assert listed[1]["parts"] == ["language aa", "task pos"]
    assert listed[1]["labels"] == ["NOUN", "VERB", "ADJ", "PUNCT"]


BAD: list[tuple[str, bytes, int, str]] = [
    ("/v1/pos/aa", b"{", 400, "is not JSON"),
    ("/v1/pos/aa", b"\xff\xfe{}", 400, "is not JSON"),
    ("/v1/pos/aa", b"", 422, "body"),
    ("/v1/pos/aa", b"[]", 422, "body"),
    ("/v1/pos/aa", b"{}", 422, "give one of text, words, question, inputs"),
    ("/v1/pos/aa", b'{"text": 5}', 422, "body.text: Input should be a valid string"),
    ("/v1/pos/aa", b'{"text": ""}', 422, "body.text: String should have at least 1 character"),
    ("/v1/pos/aa", b'{"text": " \\n "}', 422, "needs a character that is not white space"),
    ("/v1/pos/aa", b'{"text": "a\\u0000b"}', 422, "no control characters"),
    ("/v1/pos/aa", b'{"text": "a\\u0085b"}', 422, "no control characters"),
    ("/v1/pos/aa", b'{"text": "a\\ud800b"}', 422, "unicode"),
    ("/v1/pos/aa", b'{"words": ["a", "\\udfff"]}', 422, "unicode"),
    ("/v1/pos/aa", b'{"words": []}', 422, "at least 1 item"),
    ("/v1/pos/aa", b'{"words": ["a", ""]}', 422, "body.words.1"),
    ("/v1/pos/aa", b'{"text": "a", "more": 1}', 422, "Extra inputs"),
    ("/v1/pos/aa", b'{"inputs": [{"text": "a"}, {"text": 5}]}', 422, "body.inputs.1.text"),
    ("/v1/pos/aa", json.dumps({"text": "a " * 30_000}).encode(), 422, "60000 characters, at most 20000"),
    ("/v1/pos/aa", json.dumps({"text": "a " * 9_000}).encode(), 422, "9000 words, at most 4000"),
    ("/v1/pos/aa", json.dumps({"words": ["a"] * 100_000}).encode(), 422, "100000 characters, at most 20000"),
    ("/v1/pos/aa", json.dumps({"inputs": [{"text": "a"}] * 65}).encode(), 422, "65 texts, at most 64"),
    ("/v1/pos/aa", b'{"text": "' + b"a" * 10_000_000 + b'"}', 413, "larger than 1000000 bytes"),
    ("/v1/pos/aa", b"[" * 100_000, 400, "is not JSON"),
    ("/v1/pos/xx", b'{"text": "a"}', 404, "no release of pos for this language; there are aa, bb, cc"),
    ("/v1/ner/aa", b'{"text": "a"}', 404, "no such target task; there are coarse, pos"),
    ("/v1/pos/%F0%9F%98%80%00", b'{"text": "a"}', 404, "there are aa, bb, cc"),
    ("/v1/pos/%ED%A0%80", b'{"text": "a"}', 404, "there are aa, bb, cc"),
    (f"/v1/pos/{'x' * 101}", b'{"text": "a"}', 422, "at most 100 characters"),
    ("/v1/batch", b'{"inputs": [{"text": "a", "language": "aa"}]}', 422, "body.inputs.0.target_task"),
    ("/v1/batch", b'{"inputs": [{"text": "a", "language": "\\ud800", "target_task": "pos"}]}', 404, "aa, bb, cc"),
    ("/v1/batch", b'{"inputs": [{"text": "a", "language": "zz", "target_task": "pos"}]}', 404, "aa, bb, cc"),
    ("/nowhere", b"{}", 404, "Not Found"),
    ("/v1/models", b"{}", 405, "Method Not Allowed"),
]


@pytest.fixture
def client(make_client: Any) -> TestClient:
    return make_client()


def test_bad_input_is_a_4xx_in_one_shape_that_says_what_is_wrong(client: TestClient) -> None:
    for path, body, status, message in BAD:
        response = client.post(path, content=body, headers=JSON)
        assert (response.status_code, path, body[:60]) == (status, path, body[:60]), response.text[:300]
        assert message in problem(response)["message"], (path, body[:60], response.text[:300])
    assert client.post("/v1/pos/aa", json={"text": "bako"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "told"),
    [
        ({}, b'{"text": "bako"}', 415, "no content type; send Content-Type: application/json"),
        ({"content-type": " "}, b'{"text": "bako"}', 415, "no content type"),
        ({"content-type": "text/plain"}, b'{"text": "bako"}', 415, "the content type is text/plain"),
        ({"content-type": ";;"}, b'{"text": "bako"}', 415, "the content type is ;;"),
        ({"content-type": "application/json; charset=iso-8859-1"}, b'{"text": "bak\xf3"}', 415, "iso-8859-1"),
        ({"content-type": "application/json; charset=UTF-16"}, b'{"text": "bako"}', 415, "the charset is utf-16"),
        ({**JSON, "content-encoding": "gzip"}, b"\x1f\x8b\x08", 415, "packed (Content-Encoding: gzip)"),
        ({**JSON, "content-encoding": "br, gzip"}, b"x", 415, "Content-Encoding: br, gzip"),
        (JSON, '{"text": "bakó"}'.encode("latin-1"), 400, "JSON, which is UTF-8; this is another encoding"),
        (JSON, '{"text": "bako"}'.encode("utf-16"), 400, "which is UTF-8"),
        (JSON, '{"text": "bako"}'.encode("utf-32-le"), 400, "which is UTF-8"),
        (JSON, '{"text": "bako"}'.encode("utf-8-sig"), 200, ""),
        ({"content-type": 'Application/JSON; charset="UTF-8"'}, b'{"text": "bako"}', 200, ""),
        ({"content-type": "application/problem+json"}, b'{"text": "bako"}', 200, ""),
        ({**JSON, "content-encoding": "identity"}, b'{"text": "bako"}', 200, ""),
    ],
)
def test_a_body_of_another_kind_is_told_as_what_it_is(
    client: TestClient, headers: dict[str, str], body: bytes, status: int, told: str
) -> None:
    response = client.post("/v1/pos/aa", content=body, headers=headers)
    assert response.status_code == status, response.text
    if status >= 400:
        assert told in problem(response)["message"]


def test_every_page_answers_a_head_as_a_get_without_its_body(client: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/v1/models"):
        assert client.head(path).status_code == client.get(path).status_code == 200, path
        assert client.head(path).content == b""
        assert client.head(path).headers["content-type"] == client.get(path).headers["content-type"]
    assert client.head("/v1/pos/aa").status_code == 405


def test_every_key_is_compared_in_constant_time_whether_right_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append((a, b)), compare(a, b))[1])
    keys = ApiKeys([KEY, "another-key-of-some-length", "a-third-key-of-some-length"])
    for given_key, allowed in ((KEY, True), ("x", False), ("", False), (KEY[:-1], False)):
        compared.clear()
        assert keys.allow({"headers": [(b"x-api-key", given_key.encode())]}) is allowed
        assert len(compared) == 3
        assert {len(a) for pair in compared for a in pair} == {32}  # hashes: their length tells nothing of a key


def test_a_body_without_a_length_is_bounded_too(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 10_000

    response = client.post("/v1/pos/aa", content=endless(), headers=JSON)
    assert response.status_code == 413
    assert problem(response)["code"] == "large_body"


def test_long_texts_are_answered_in_pieces_or_refused_by_setting(make_client: Any) -> None:
    text = "bako dedas gilik . " * 20
    answered = make_client().post("/v1/pos/aa", json={"text": text}).json()["results"][0]
    assert answered["pieces"] > 3
    assert len(answered["words"]) == 80
    refused = make_client(long_texts="refuse").post("/v1/pos/aa", json={"text": text})
    assert "send it in parts" in problem(refused)["message"]
    too_much = make_client(max_pieces=3).post("/v1/pos/aa", json={"text": text})
    assert "at most 3 times" in problem(too_much)["message"]


def test_only_those_with_a_key_may_ask(make_client: Any) -> None:
    client = make_client(keys=("another-key-of-some-length", KEY))
    body = {"text": "bako"}
    for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer "}, {"x-api-key": ""}):
        response = client.post("/v1/pos/aa", json=body, headers=headers)
        assert response.status_code == 401
        assert problem(response)["code"] == "no_key"
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        assert client.post("/v1/pos/aa", json=body, headers=headers).status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200
    assert client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]


def test_a_full_queue_is_a_429_with_retry_after_and_a_late_answer_a_504(
    make_service: Callable[..., Service], shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    service = make_service(shelf, max_waiting=1, request_seconds=0.4)
    client = TestClient(create_app(service), raise_server_exceptions=False)
    gate = threading.Event()
    run = service._engine.run
    monkeypatch.setattr(service._engine, "run", lambda *a: (gate.wait(20), run(*a))[1])
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(client.post("/v1/pos/aa", json={"text": "bako"}).status_code))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    full = None
    if 429 not in statuses:
        full = client.post("/v1/pos/aa", json={"text": "bako"})
    gate.set()

    assert set(statuses) <= {429, 504}
    assert statuses.count(504) >= 1
    assert 429 in statuses or (full is not None and full.status_code == 429)


def test_a_draining_server_is_not_ready_and_still_answers(make_service: Callable[..., Service], shelf: Any) -> None:
    service = make_service(shelf)
    client = TestClient(create_app(service))
    assert client.get("/readyz").status_code == 200
    service.drain()
    assert client.get("/readyz").status_code == 503
    assert client.post("/v1/pos/aa", json={"text": "bako"}).status_code == 200
    assert client.get("/healthz").json() == {"status": "alive"}


def test_metrics_tell_latency_batches_switches_memory_and_versions(client: TestClient) -> None:
    for code in ("aa", "bb", "aa"):
        client.post(f"/v1/pos/{code}", json={"text": "bako"})
    client.post("/v1/pos/zz", json={"text": "bako"})
    page = client.get("/metrics").text

    assert 'ltsft_request_seconds_count{route="answer",status="200"} 3.0' in page
    assert 'ltsft_request_seconds_count{route="answer",status="404"} 1.0' in page
    assert 'ltsft_texts_total{language="aa",target_task="pos"} 2.0' in page
    assert "ltsft_switch_seconds_count 3.0" in page
    assert "ltsft_batch_pieces_count 3.0" in page
    assert 'ltsft_release_version{language="cc",target_task="coarse"} 1.0' in page
    assert "zz" not in page
    memory = next(line for line in page.splitlines() if line.startswith("ltsft_resident_memory_bytes"))
    assert float(memory.split()[1]) > 1e7


def test_a_mistake_of_the_server_tells_nothing_of_what_is_inside(
    make_service: Callable[..., Service], shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(shelf)
    client = TestClient(create_app(service), raise_server_exceptions=False)

    def broken(*_: object) -> None:
        raise RuntimeError("secret path /home/x")

    monkeypatch.setattr(service._engine, "run", broken)
    response = client.post("/v1/pos/aa", json={"text": "bako"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert problem(response)["code"] == "server_error"


def test_the_openapi_document_is_valid_and_has_the_limits_and_examples(make_client: Any) -> None:
    schema = make_client(max_texts=7).get("/openapi.json").json()
    validate(schema)
    assert schema["components"]["schemas"]["Texts"]["properties"]["inputs"]["maxItems"] == 7
    operation = schema["paths"]["/v1/{target_task}/{language}"]["post"]
    assert set(operation["requestBody"]["content"]["application/json"]["examples"]) == {
        "text",
        "words",
        "texts",
        "pair",
        "question",
    }
    assert {"404", "422", "429", "504"} <= set(operation["responses"])
    reference = operation["responses"]["404"]["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Problem"


def test_the_page_of_routes_can_be_read_where_its_scripts_cannot_be_fetched(make_client: Any) -> None:
    page = make_client().get("/docs")
    assert page.status_code == 200
    plain = re.sub(r"<script.*?</script>|<[^>]+>", "", page.text, flags=re.DOTALL)
    assert "POST /v1/{target_task}/{language} Answer one text or several in one language." in plain
    assert "SwaggerUIBundle(" in page.text


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_schemathesis_finds_nothing_against_the_services_own_openapi(
    make_service: Callable[..., Service], full_shelf: Any, mode: GenerationMode
) -> None:
    """Valid and invalid requests; half of them for a language that is released, or nothing but 404 would be seen."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(make_service(full_shelf)))
    statuses: Counter[tuple[str, int]] = Counter()
    for operation in schema.get_all_operations():
        found = operation.ok()
        if mode is GenerationMode.NEGATIVE and found.method.upper() != "POST":
            continue  # there is nothing to send that could be wrong

        @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=found.as_strategy(generation_mode=mode), is_released=st.booleans())
        def keeps_its_word(case: Any, is_released: bool) -> None:
            if is_released and mode is GenerationMode.POSITIVE:
                for item in [case.path_parameters, *_inputs(case.body)]:
                    if item:
                        form = item if item is not case.path_parameters else case.body
                        item.update(target_task=_task_of(form), language="aa")
            response = case.call()
            # a body that is too large is refused, too: the check's list of refusals lacks 413
            counts_as_accepted = [negative_data_rejection] if response.status_code == 413 else []
            case.validate_response(response, excluded_checks=counts_as_accepted)
            statuses[case.operation.label, response.status_code] += 1

        keeps_its_word()
    if mode is GenerationMode.POSITIVE:
        assert statuses["POST /v1/{target_task}/{language}", 200]
        assert statuses["POST /v1/batch", 200]
    else:
        assert statuses["POST /v1/batch", 422]
    assert not [status for _, status in statuses if status >= 500]


def _task_of(body: Any) -> str:
    """Choose a target task that takes what a body holds."""
    forms = body if isinstance(body, dict) else {}
    return "qa" if "question" in forms else "nli" if "pair" in forms else "pos"


def _inputs(body: Any) -> list[Any]:
    inputs = body.get("inputs", []) if isinstance(body, dict) else []
    return [item for item in inputs if isinstance(item, dict) and "language" in item]
