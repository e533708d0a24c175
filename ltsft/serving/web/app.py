"""The HTTP service: routes, errors in one shape, OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Body, FastAPI, Path, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from ltsft.release import Slot
from ltsft.serving.answers import Input, OtherFormError, RefusedInputError
from ltsft.serving.batching import FullError, TooLateError
from ltsft.serving.limits import Limits
from ltsft.serving.service import Answer, Service, UnknownReleaseError
from ltsft.serving.web.docs_page import docs_page
from ltsft.serving.web.guard import ApiKeys, Guard, problem
from ltsft.serving.web.schemas import (
    AddressedPair,
    AddressedQuestion,
    AddressedText,
    AddressedWords,
    Answers,
    BatchAnswer,
    BatchRequest,
    Model,
    Models,
    Pair,
    Problem,
    Question,
    Request,
    Text,
    Texts,
    Words,
)

__all__ = ["create_app"]

_Responses = dict[int | str, dict[str, Any]]
_PROBLEMS: _Responses = {
    400: {"description": "The body is not JSON in UTF-8"},
    401: {"description": "No valid API key"},
    404: {"description": "Nothing is released for this language or target task; the message names what is"},
    405: {"description": "The route has another method"},
    408: {"description": "The body came too slowly"},
    409: {"description": "The target task takes another form of text; the message says which"},
    413: {"description": "The body is too large"},
    415: {"description": "No content type, another one than JSON, another charset, or a packed body"},
    422: {"description": "The body has another form, a text is empty, too long or holds control characters"},
    429: {"description": "The queue is full; try again after the seconds in Retry-After"},
    500: {"description": "A mistake of the server"},
    503: {"description": "Not ready"},
    504: {"description": "No answer in time"},
}
_FORMS = {form.__name__ for form in (Text, Words, Pair, Question, Texts)}
_FORMS |= {form.__name__ for form in (AddressedText, AddressedWords, AddressedPair, AddressedQuestion)}
_ABOUT = (
    "Answers for languages and target tasks, each with the composition that is released for it. An answer names its "
    'version; an error is {"error": {"code": ..., "message": ...}}, whatever went wrong.'
)
_CODES = {400: "not_json", 404: "not_found", 405: "wrong_method", 503: "not_ready"}
Name = Annotated[str, Path(max_length=100, examples=["pos"])]
LanguageCode = Annotated[str, Path(max_length=100, examples=["fo"])]


def create_app(service: Service, *, keys: ApiKeys | None = None, title: str = "ltsft") -> FastAPI:
    """Make the HTTP service.

    Args:
        service: what answers; the caller starts and closes it.
        keys: who may ask; everybody without them.
        title: shown in OpenAPI.
    """
    app = FastAPI(title=title, version="1", description=_ABOUT, docs_url=None, redoc_url=None)
    keys = keys or ApiKeys()
    _add_errors(app)
    _add_routes(app, service)
    _add_probes(app, service)
    app.openapi = lambda: _schema(app, service.limits, needs_key=keys.are_needed)  # type: ignore[method-assign]
    routes = {"/v1/models", "/v1/batch", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}
    service.metrics.watch_queue(lambda: service.waiting)
    app.add_middleware(
        Guard,
        limits=service.limits,
        metrics=service.metrics,
        keys=keys,
        route_of=lambda path: path if path in routes else "answer" if path.startswith("/v1/") else "other",
    )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    problems: _Responses = {code: {**told, "model": Problem} for code, told in _PROBLEMS.items()}

    @app.get("/v1/models", responses={401: problems[401]}, tags=["releases"])
    async def models() -> Models:
        """List everything that answers, with versions and what stands behind them."""
        return _models(service)

    @app.post("/v1/batch", responses=_of(problems, 503), tags=["answers"])
    async def batch(request: BatchRequest) -> BatchAnswer:
        """Answer texts of several languages and target tasks."""
        asked = [(item.slot, item.to_input()) for item in request.inputs]
        answers = await _answered(service, asked)
        return BatchAnswer(results=[_answers(slot, [answer]) for (slot, _), answer in zip(asked, answers, strict=True)])

    @app.post("/v1/{target_task}/{language}", responses=_of(problems, 503), tags=["answers"])
    async def answer(
        target_task: Name, language: LanguageCode, request: Annotated[Request, Body(openapi_examples=_EXAMPLES)]
    ) -> Answers:
        """Answer one text or several in one language."""
        slot = Slot(language, target_task)
        service.known_reader(slot)  # before the body is looked at closely
        items = request.inputs if isinstance(request, Texts) else [request]
        return _answers(slot, await _answered(service, [(slot, item.to_input()) for item in items]))


def _add_probes(app: FastAPI, service: Service) -> None:
    problems: _Responses = {503: {**_PROBLEMS[503], "model": Problem}}

    @app.get("/healthz", responses=problems, tags=["operation"])
    async def health() -> dict[str, str]:
        """Say whether the process works; if not, it is to be restarted."""
        if not service.is_alive():
            raise HTTPException(503, "the model's thread is stuck or gone")
        return {"status": "alive"}

    @app.get("/readyz", responses=problems, tags=["operation"])
    async def readiness() -> dict[str, str]:
        """Say whether requests should come."""
        if not service.is_ready():
            raise HTTPException(503, "loading, about to stop, or nothing that is released can be loaded: the log says")
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Give metrics to Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))


async def _answered(service: Service, asked: Sequence[tuple[Slot, Input]]) -> list[Answer]:
    _refuse_large([item for _, item in asked], service.limits)
    answers = await service.answer(asked)
    for slot, _ in asked:
        service.metrics.answered(slot)
    return answers


def _refuse_large(items: Sequence[Input], limits: Limits) -> None:
    if len(items) > limits.max_texts:
        raise RefusedInputError(f"the request has {len(items)} texts, at most {limits.max_texts} are allowed")
    for number, item in enumerate(items):
        if item.characters > limits.max_characters:
            raise RefusedInputError(
                f"text {number} has {item.characters} characters, at most {limits.max_characters} are allowed"
            )


def _answers(slot: Slot, answers: Sequence[Answer]) -> Answers:
    release = answers[0].release
    return Answers(
        target_task=slot.target_task,
        language=slot.language,
        version=release.version,
        composition=release.composition.key,
        results=[answer.result for answer in answers],
    )


def _models(service: Service) -> Models:
    found = []
    for slot, admitted in sorted(service.live.items()):
        refused = service.refused.get(slot)
        composition = admitted.composition
        found.append(
            Model(
                target_task=slot.target_task,
                language=slot.language,
                version=admitted.release.version,
                composition=composition.key,
                takes=list(admitted.reader.forms),
                labels=list(composition.labels),
                base=composition.base.id,
                parts=[part.subject for part in composition.parts],
                refused_version=refused[0] if refused else None,
                refused_reason=refused[1] if refused else None,
            )
        )
    return Models(base=service.base_id, models=found)


def _add_errors(app: FastAPI) -> None:
    def tell(status: int, code: str) -> Callable[[HttpRequest, Exception], Awaitable[JSONResponse]]:
        async def handler(request: HttpRequest, error: Exception) -> JSONResponse:
            return JSONResponse(problem(code, str(error) or code.replace("_", " ")), status)

        return handler

    async def malformed(request: HttpRequest, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        is_json = not any(item["type"] == "json_invalid" for item in problems)
        if not is_json:
            return JSONResponse(problem("not_json", "the body is not JSON"), 400)
        return JSONResponse(problem("wrong_form", _listed(problems)), 422)

    async def full(request: HttpRequest, error: Exception) -> JSONResponse:
        seconds = error.retry_after_seconds if isinstance(error, FullError) else 1
        return JSONResponse(problem("queue_full", str(error)), 429, headers={"Retry-After": str(seconds)})

    async def by_http(request: HttpRequest, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = str(error.detail) if isinstance(error, HTTPException) else ""
        headers = error.headers if isinstance(error, HTTPException) else None
        if status == 400:  # FastAPI's, of a body that cannot be parsed at all
            detail = "the body is not JSON"
        return JSONResponse(problem(_CODES.get(status, "refused"), detail), status, headers=headers)

    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(FullError, full)
    app.add_exception_handler(HTTPException, by_http)
    app.add_exception_handler(UnknownReleaseError, tell(404, "unknown_release"))
    app.add_exception_handler(OtherFormError, tell(409, "other_form"))
    app.add_exception_handler(RefusedInputError, tell(422, "refused_text"))
    app.add_exception_handler(TooLateError, tell(504, "too_late"))
    app.add_exception_handler(Exception, _hidden)


async def _hidden(request: HttpRequest, error: Exception) -> JSONResponse:
    """Tell nothing of what is inside; the log has it."""
    return JSONResponse(problem("server_error", "the server made a mistake; its log says which"), 500)


def _listed(problems: Sequence[Mapping[str, Any]]) -> str:
    """Say what is wrong, without what was sent: it may be long, secret, or no text at all."""
    closest = _closest(problems, 0)
    lines = []
    for item in closest[:5]:
        place = ".".join(str(step) for step in item["loc"] if step not in _FORMS)
        lines.append(f"{place}: {_said(item)}")
    more = f" (and {len(closest) - 5} more)" if len(closest) > 5 else ""
    return "; ".join(lines) + more


def _closest(problems: Sequence[Mapping[str, Any]], depth: int) -> list[Mapping[str, Any]]:
    """Of what is wrong with each of the forms that a body may have, keep that of the form that it is closest to."""
    by_form: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for item in problems:
        place = tuple(item["loc"])
        level = next((i + 1 for i in range(depth, len(place)) if place[i] in _FORMS), 0)
        by_form.setdefault(place[:level], []).append(item)
    if len(by_form) < 2:
        return [item for level, found in by_form.items() for item in (_closest(found, len(level)) if level else found)]

    def misfits(level: tuple[Any, ...]) -> int:
        own = [item for item in by_form[level] if len(item["loc"]) == len(level) + 1]
        return sum(item["type"] in ("missing", "extra_forbidden") for item in own)

    best = min(by_form, key=lambda level: (misfits(level), len(by_form[level])))
    if all(item["type"] == "missing" for found in by_form.values() for item in found):
        names = ", ".join(dict.fromkeys(str(found[0]["loc"][-1]) for found in by_form.values()))
        return [{"loc": best[:-1], "type": "missing", "msg": f"give one of {names}"}]
    return _closest(by_form[best], len(best))


def _said(item: Mapping[str, Any]) -> str:
    if item["type"] == "string_pattern_mismatch":
        return "needs a character that is not white space, and no control characters but tab and line breaks"
    return str(item["msg"])


def _of(problems: _Responses, *without: int) -> _Responses:
    return {code: told for code, told in problems.items() if code not in without}


def _schema(app: FastAPI, limits: Limits, *, needs_key: bool) -> dict[str, Any]:
    """Make the OpenAPI document, with the limits of this server in it."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        models = schema["components"]["schemas"]
        for name in ("Text", "Pair", "Question"):
            for of in (name, f"Addressed{name}"):
                for field in models[of]["properties"].keys() & {"text", "pair", "question", "context"}:
                    models[of]["properties"][field]["maxLength"] = limits.max_characters
        for name in ("Words", "AddressedWords"):
            models[name]["properties"]["words"]["maxItems"] = limits.max_words
        for name in ("Texts", "BatchRequest"):
            models[name]["properties"]["inputs"]["maxItems"] = limits.max_texts
        if needs_key:
            schemes = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
            schema["components"]["securitySchemes"] = schemes
            for path, methods in schema["paths"].items():
                for operation in methods.values() if path.startswith("/v1/") else ():
                    operation["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "A text", "value": {"text": "Hetta er ein roynd."}},
    "words": {"summary": "Words", "value": {"words": ["Hetta", "er", "ein", "roynd", "."]}},
    "texts": {
        "summary": "Several texts",
        "value": {"inputs": [{"text": "Hetta er ein roynd."}, {"words": ["Ja", "!"]}]},
    },
    "pair": {
        "summary": "A pair of texts, for entailment and the like",
        "value": {"text": "Kettan svevur á borðinum.", "pair": "Kettan er vakin."},
    },
    "question": {
        "summary": "A question with its context",
        "value": {"question": "Hvar svevur kettan?", "context": "Kettan svevur á borðinum."},
    },
}
