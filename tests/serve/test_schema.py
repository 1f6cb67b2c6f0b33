"""Every endpoint of the description that the server gives of itself, with requests that follow it, and with others."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from .conftest import Served


def test_the_description_has_examples_that_work(served: Served) -> None:
    schema = served.http.get("/openapi.json").json()
    assert {"/caption", "/ask", "/match", "/v1/chat/completions", "/v1/embeddings", "/ready"} <= schema["paths"].keys()
    form = schema["paths"]["/caption"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["format"] == "binary" and form["required"] == ["file"]
    for name, path in (("ChatRequest", "/v1/chat/completions"), ("EmbeddingsRequest", "/v1/embeddings")):
        example = schema["components"]["schemas"][name]["example"] | {"model": served.service.name}
        assert served.http.post(path, json=example).status_code == 200


def test_forms_have_examples_that_work(served: Served, image_paths: list[Path]) -> None:
    paths = served.http.get("/openapi.json").json()["paths"]
    for path in ("/caption", "/batch_caption", "/ask", "/match", "/embed"):
        form = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        fields = {name: one["examples"][0] for name, one in form["properties"].items() if "examples" in one}
        files = "file" if "file" in form["properties"] else "files"
        assert set(form["required"]) <= {*fields, files} and fields
        answer = served.post(path, image_paths[0], field=files, **fields)
        assert answer.status_code == 200, answer.text


def test_refusals_are_described_as_they_are(served: Served) -> None:
    schema = served.http.get("/openapi.json").json()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    refused, problem = (schema["components"]["schemas"][name] for name in ("Refused", "Problem"))
    for path, body in {"/caption": {}, "/v1/chat/completions": {"json": {"messages": []}}}.items():
        described = schema["paths"][path]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
        assert described == {"$ref": "#/components/schemas/Refused"}
        answer = served.http.post(path, **(body or {"data": {"nothing": "1"}}))
        assert answer.status_code == 422
        assert answer.json().keys() == set(refused["required"])
        assert answer.json()["error"].keys() == set(problem["required"])


@pytest.mark.slow
def test_requests_made_of_the_description(served: Served, image_paths: list[Path]) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    photos = [path.read_bytes() for path in image_paths]
    from schemathesis.specs.openapi import checks

    described = (checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance)
    schemathesis.openapi.format("binary", hypothesis.strategies.sampled_from(photos))
    url = "data:image/png;base64," + base64.b64encode(photos[0]).decode()
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    failures = served.metric("openblip_failures_total")
    seen: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=40, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if case.path.startswith("/v1/chat") and isinstance(case.body, dict):
                part = {"type": "image_url", "image_url": {"url": url}}
                case.body = {
                    **case.body,
                    "model": served.service.name,
                    "messages": [{"role": "user", "content": [part]}],
                }
            answer = case.call(base_url=served.url)
            seen.setdefault(case.path, set()).add(answer.status_code)
            assert answer.status_code in (200, 404, 413, 415, 422), answer.text
            assert "Traceback" not in answer.text
            case.validate_response(answer, checks=described)
            if answer.status_code != 200:
                assert set(answer.json()) == {"error", "request_id"}

        check()
    assert served.metric("openblip_failures_total") == failures
    for path in ("/caption", "/batch_caption", "/ask", "/match", "/v1/chat/completions"):
        assert 200 in seen[path], (path, seen)
