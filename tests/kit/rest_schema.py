"""An OpenAPI document of MLflow's REST API, made from its own service definitions.

MLflow 3.17.2 publishes none: its FastAPI part can describe itself, its Flask part is described by
protobuf services (mlflow/protos/service.proto), whose options name method and path
(server/handlers.py, get_service_endpoints).
"""

from __future__ import annotations

import copy
import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

INTEGER = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
NUMBER, TEXT, FLAG = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
KINDS = {
    FieldDescriptor.CPPTYPE_INT32: INTEGER,
    FieldDescriptor.CPPTYPE_INT64: INTEGER,
    FieldDescriptor.CPPTYPE_UINT32: INTEGER,
    FieldDescriptor.CPPTYPE_UINT64: INTEGER,
    FieldDescriptor.CPPTYPE_DOUBLE: NUMBER,
    FieldDescriptor.CPPTYPE_FLOAT: NUMBER,
    FieldDescriptor.CPPTYPE_BOOL: FLAG,
    FieldDescriptor.CPPTYPE_STRING: TEXT,
}
_PARAMETER = re.compile(r"\{assessment\.(\w+)\}|<path:(\w+)>")
"""Spellings of a parameter that OpenAPI does not know."""
DEEPEST = 3
"""Messages in messages; what is below may be any object."""
WITHOUT_AN_END = ("/gateway/", "/ajax-api/3.0/mlflow/assistant/")
"""Routes that talk to other servers, or are closed."""


def document() -> dict[str, Any]:
    """Return the OpenAPI document of all REST routes below /api and of OTLP."""
    paths: dict[str, Any] = {}
    for method, path, request in _flask_routes():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, request)
    described, components = _fastapi_part()
    for path, operations in described.items():
        paths.setdefault(path, {}).update(operations)
    return {
        "openapi": "3.0.3",
        "info": {"title": "MLflow", "version": "3.17.2"},
        "paths": paths,
        "components": components,
    }


def _flask_routes() -> list[tuple[str, str, Descriptor]]:
    from mlflow.protos import (
        databricks_pb2,
        mlflow_artifacts_pb2,
        model_registry_pb2,
        service_pb2,
        webhooks_pb2,
    )

    services = (
        service_pb2.MlflowService,
        model_registry_pb2.ModelRegistryService,
        mlflow_artifacts_pb2.MlflowArtifactsService,
        webhooks_pb2.WebhookService,
    )
    return [
        (
            endpoint.method,
            _PARAMETER.sub(
                lambda found: f"{{{found[1] or found[2]}}}", f"/api/{endpoint.since.major}.0{endpoint.path}"
            ),
            method.input_type,
        )
        for service in services
        for method in service.DESCRIPTOR.methods
        for endpoint in method.GetOptions().Extensions[databricks_pb2.rpc].endpoints
    ]


def _fastapi_part() -> tuple[dict[str, Any], dict[str, Any]]:
    from mlflow.server.fastapi_app import app

    described = copy.deepcopy(app.openapi())
    paths = {
        path: {method: {**operation, "responses": ANY} for method, operation in operations.items()}
        for path, operations in described["paths"].items()
        if not path.startswith(("/ajax-api/", "/health", *WITHOUT_AN_END)) and "mlflow-artifacts" not in path
    }
    return paths, described.get("components", {})


ANY = {"default": {"description": "any answer"}}


def _operation(method: str, path: str, request: Descriptor) -> dict[str, Any]:
    in_path = re.findall(r"\{(\w+)\}", path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {**TEXT, "minLength": 1}} for name in in_path
    ]
    operation: dict[str, Any] = {"operationId": f"{method} {path}", "responses": ANY}
    schema = _message(request, DEEPEST)
    if method == "GET":
        parameters += [
            {"name": name, "in": "query", "schema": field}
            for name, field in schema["properties"].items()
            if name not in in_path
        ]
    else:
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return {**operation, "parameters": parameters}


def _message(message: Descriptor, depth: int) -> dict[str, Any]:
    if depth == 0 or message.full_name.startswith("google.protobuf."):
        return {}  # any value
    return {
        "type": "object",
        "properties": {field.name: _field(field, depth) for field in message.fields},
    }


def _field(field: FieldDescriptor, depth: int) -> dict[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {
            "type": "object",
            "additionalProperties": _field(field.message_type.fields_by_name["value"], depth),
        }
    if field.message_type is not None:
        schema = _message(field.message_type, depth - 1)
    elif field.enum_type is not None:
        schema = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    else:
        schema = dict(KINDS[field.cpp_type])
    return {"type": "array", "items": schema, "maxItems": 3} if _is_list(field) else schema


def _is_list(field: FieldDescriptor) -> bool:
    repeated = getattr(field, "is_repeated", None)
    return repeated if repeated is not None else field.label == FieldDescriptor.LABEL_REPEATED
