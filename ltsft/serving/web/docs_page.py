"""The page `/docs`: Swagger UI, and the routes as plain text where its scripts cannot be fetched from the internet."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi.openapi.docs import get_swagger_ui_html

__all__ = ["docs_page"]

_PLACE = '<div id="swagger-ui">'


def docs_page(schema: Mapping[str, Any]) -> str:
    """Write the page for an OpenAPI document; Swagger UI, once loaded, takes the place of the plain text."""
    page = get_swagger_ui_html(openapi_url="openapi.json", title=schema["info"]["title"]).body
    rows = [
        f"<li><code>{escape(method.upper())} {escape(path)}</code> {escape(operation.get('description', ''))}</li>"
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    plain = (
        f"<h1>{escape(schema['info']['title'])}</h1><ul>{''.join(rows)}</ul>"
        '<p>All of it, with schemas and examples, is in <a href="openapi.json">openapi.json</a>. To try requests from '
        "here the browser needs cdn.jsdelivr.net.</p>"
    )
    return bytes(page).decode().replace(_PLACE, _PLACE + plain)
