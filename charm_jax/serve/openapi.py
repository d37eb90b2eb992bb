"""Describe the HTTP interface as an OpenAPI document."""

from collections.abc import Mapping, Sequence
from typing import Any

from charm_jax import __version__
from charm_jax.inference.predictor import MOST_FORGOTTEN
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.serve.uploads import FIELD, MOST_BYTES

Schema = dict[str, Any]
_REFUSALS = {
    400: "the request is damaged",
    401: "the token is missing or wrong",
    403: "another site sent the request",
    408: "the upload took too long",
    413: "the file or the image is too large",
    415: "the request is no form",
    422: "the image cannot be read, or a value is not valid",
    429: "the queue is full: try again after the seconds in Retry-After",
}
_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}


def document(findings: Sequence[str]) -> Schema:
    """Return the document of a server whose model has these findings."""
    numbers = _object({name: _NUMBER for name in findings})
    names = {"type": "array", "items": {"type": "string", "enum": list(findings)}}
    case = {
        "case": _TEXT | {"description": "name of a stored case"},
        "patient": _TEXT,
        "labels": _or_null(names),
        "cosine": _NUMBER,
        "times": {"type": "integer"},
    }
    record = {
        "findings": _or_null(names) | {"description": "those that reach their thresholds"},
        "unfamiliar": _or_null(_FLAG)
        | {"description": "whether the image is out-of-distribution; then no finding is reported"},
        "unfamiliar_in": _list(_TEXT),
        "warnings": _list(_TEXT),
        "scores": numbers | {"description": "calibrated probabilities"},
        "logits": numbers,
        "run": _TEXT,
        "checkpoint": _TEXT,
        "memory": _or_null(_TEXT),
        "trained_on_simulated": _or_null(_FLAG),
        "uncalibrated": names,
        "undecided": names,
        "note": _TEXT,
    }
    with_memory = {
        "without_memory": numbers,
        "evidence": _list(_object(case | {"contributions": numbers})),
        "vote": _object({name: _or_null(_NUMBER) for name in findings}),
        "attention_range": _list(_NUMBER),
    }
    explanation = {
        "image": _TEXT | {"description": "data URL of a PNG: 256 x red + green is the grey level"},
        "heat_maps": {
            "type": "object",
            "additionalProperties": _list(_list(_NUMBER)),
            "description": "Grad-CAM of each finding, and attention, 0 to 1",
        },
        "features": _or_null(_TEXT) | {"description": "to send to /api/forget"},
        "thumbnails": {"type": "object", "additionalProperties": _TEXT},
    }
    forgotten = {
        "scores": numbers,
        "logits": numbers,
        "evidence": _list(_object(case)),
        "thumbnails": explanation["thumbnails"],
    }
    asked = {
        "features": _TEXT,
        "cases": _list(_TEXT) | {"maxItems": MOST_FORGOTTEN},
    }
    model = {
        "description": _TEXT,
        "image_size": {"type": "integer"},
        "memory_cases": {"type": "integer"},
        "votes": _FLAG,
        "findings": _list(
            _object(
                {"name": _TEXT, "threshold": _or_null(_NUMBER), "prevalence": _or_null(_NUMBER)}
            )
        ),
    }
    image = {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": _object({FIELD: _TEXT | {"format": "binary"}})
                | {"description": f"PNG, JPEG, TIFF or DICOM of at most {MOST_BYTES:,} bytes"}
            }
        },
    }
    predicted = _object(record, with_memory)
    explained = _object(record | {"explanation": _object(explanation)}, with_memory)
    refused = (400, 401, 403, 408, 413, 415, 422, 429)
    return {
        "openapi": "3.1.0",
        "info": {"title": "CHARM-JAX", "version": __version__, "description": DISCLAIMER},
        "security": [{}, {"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/api/predict": {"post": _operation("Predict an image", predicted, refused, image)},
            "/api/explain": {
                "post": _operation("Predict an image, with heat maps", explained, refused, image)
            },
            "/api/forget": {
                "post": _operation(
                    "Predict again with stored cases forgotten",
                    _object(forgotten),
                    (400, 401, 403, 408, 413, 422, 429),
                    {
                        "required": True,
                        "content": {"application/json": {"schema": _object(asked)}},
                    },
                )
            },
            "/api/model": {"get": _operation("Describe the model", _object(model), (401,))},
            "/healthz": {"get": _operation("Whether it works", _object({"status": _TEXT}), ())},
            "/metrics": {
                "get": {
                    "summary": "Count requests, for Prometheus",
                    "responses": {"200": {"description": "text", "content": {"text/plain": {}}}},
                }
            },
        },
    }


def _operation(
    summary: str, schema: Schema, refused: Sequence[int], body: Schema | None = None
) -> Schema:
    responses = {
        "200": {"description": "done", "content": {"application/json": {"schema": schema}}}
    }
    error = {"application/json": {"schema": _object({"error": _TEXT})}}
    for status in refused:
        responses[str(status)] = {"description": _REFUSALS[status], "content": error}
    return {"summary": summary, "responses": responses} | (
        {} if body is None else {"requestBody": body}
    )


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
