"""What a worker says about itself: health, metadata, JSON schemas, OpenAPI."""

from __future__ import annotations

from typing import Any

from envfarm.worker.catalogue import Catalogue

API_VERSION = "1.0.0"
"""Of OpenEnv's HTTP interface."""

ACTION: dict[str, Any] = {
    "title": "Action", "type": "object", "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "description": "the action as text, such as 'move north'"},
        "name": {"type": "string", "description": "or a tool's name"},
        "arguments": {"type": "object", "description": "and its arguments"},
        "role": {"type": "string", "description": "whose action it is; default: whoever's turn it is"},
        "metadata": {"type": "object"},
    },
    "oneOf": [{"required": ["text"]}, {"required": ["name"]}],
}  # fmt: skip
_TOOL = {
    "type": "object", "required": ["name", "description", "inputSchema"],
    "properties": {"name": {"type": "string"}, "description": {"type": "string"}, "inputSchema": {"type": "object"}},
}  # fmt: skip
OBSERVATION: dict[str, Any] = {
    "title": "Observation", "type": "object", "required": ["text", "role"], "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "description": "what the role that acts next sees"},
        "role": {"type": "string", "description": "who acts next; at the end, who acted last"},
        "available_tools": {"type": "array", "items": _TOOL, "description": "visible tools: at first, and when they change"},
        "malformed": {"type": "boolean", "description": "the action before was not one"},
        "stop": {"type": "string", "description": "why the episode ended"},
        "tool_name": {"type": "string"},
        "result": {"type": "string"},
    },
}  # fmt: skip
STATE: dict[str, Any] = {
    "title": "State", "type": "object", "required": ["episode_id", "step_count"],
    "properties": {
        "episode_id": {"type": ["string", "null"]}, "step_count": {"type": "integer", "minimum": 0},
        "env": {"type": ["string", "null"]}, "instance": {"type": ["string", "null"], "description": "the instance's hash"},
        "role": {"type": ["string", "null"]}, "done": {"type": "boolean"},
    },
}  # fmt: skip
RESET: dict[str, Any] = {
    "title": "ResetRequest", "type": "object",
    "properties": {
        "seed": {"type": "integer", "minimum": 0}, "index": {"type": "integer", "minimum": 0},
        "split": {"type": "string"}, "setting": {"type": "object"}, "env": {"type": "string"},
        "episode_id": {"type": "string", "maxLength": 255},
    },
}  # fmt: skip
RESULT: dict[str, Any] = {
    "title": "StepResponse", "type": "object", "required": ["observation", "reward", "done"],
    "properties": {
        "observation": OBSERVATION, "reward": {"type": ["number", "null"]}, "done": {"type": "boolean"},
        "metadata": {"type": "object"},
    },
}  # fmt: skip
STEP: dict[str, Any] = {
    "title": "StepRequest", "type": "object", "required": ["action"], "properties": {"action": ACTION},
}  # fmt: skip

PATHS = ("/health", "/metadata", "/schema", "/state", "/openapi.json", "/reset", "/step", "/mcp", "/list_environments")


def document(path: str, catalogue: Catalogue) -> Any:
    """The answer to GET `path`, or None where it is none of these. Raises: UnknownIdError where it is about an environment, and
    the worker serves only what clients bring."""
    if path == "/health":
        return {"status": "healthy"}
    if path == "/metadata":
        spec = catalogue.default
        described = (
            f"{spec.title or spec.id} ({', '.join(catalogue.specs)})" if len(catalogue.specs) > 1 else spec.title or spec.id
        )
        return {"name": spec.id, "description": described, "version": spec.id.rpartition("-v")[2]}
    if path == "/schema":
        return {"action": ACTION, "observation": OBSERVATION, "reset_observation": OBSERVATION, "state": STATE}
    if path == "/state":  # of no session: an HTTP request has none
        return {"episode_id": None, "step_count": 0, "env": catalogue.default.id, "instance": None, "role": None, "done": False}
    if path == "/openapi.json":
        return openapi(catalogue)
    return None


def openapi(catalogue: Catalogue) -> dict[str, Any]:
    """OpenAPI 3.1, by hand: few paths, and no framework to ask."""

    def said(schema: dict[str, Any]) -> dict[str, Any]:
        return {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}}

    def get(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": said(schema)}}

    def post(summary: str, body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        content = {"application/json": {"schema": body}}
        return {"post": {"summary": summary, "requestBody": {"content": content}, "responses": said(schema)}}

    anything = {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": catalogue.default.id,
            "version": API_VERSION,
            "description": "Environments over OpenEnv; episodes at /ws",
        },
        "paths": {
            "/health": get("Health", anything),
            "/metadata": get("What is served", anything),
            "/schema": get("JSON schemas of action, observation and state", anything),
            "/state": get("State of a fresh session", STATE),
            "/reset": post("First observation of an instance", RESET, RESULT),
            "/step": post("One action on a fresh session", STEP, RESULT),
            "/mcp": post("JSON-RPC: tools/list, tools/call", anything, anything),
            "/list_environments": get("Environment ids", {"type": "array", "items": {"type": "string"}}),
        },
    }
