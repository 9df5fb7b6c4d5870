# SPDX-License-Identifier: LGPL-2.1-or-later
"""src/api/openapi.yaml as a judge: a client of droverd's API whose every request and answer is held against it."""

import copy
import http.client
import json
import re
import socket
import urllib.parse

import jsonschema
import yaml

from .procs import REPO

PATH = REPO / "src" / "api" / "openapi.yaml"
METHODS = ("get", "post", "put", "patch", "delete")


def load(text=None):
    return yaml.safe_load(PATH.read_text() if text is None else text)


def routes():
    """(method, path) of each row of the table in routes.c."""
    text = (REPO / "src" / "api" / "routes.c").read_text()
    table = text[text.index("DrRoute routes[]"):]
    return re.findall(r'\{ "([A-Z]+)", "([^"]+)", DR_BODY_', table[:table.index("};")])


class Spec:
    """strict: a member that is not described is an error, as nobody would learn of it."""

    def __init__(self, document=None):
        self.document = document or load()
        self.operations = {(method.upper(), path): self._operation(item, method)
                           for path, item in self.document["paths"].items() for method in METHODS if method in item}

    def _operation(self, item, method):
        operation = dict(item[method])
        operation["parameters"] = [self.resolve(one) for one in item.get("parameters", []) + operation.get("parameters", [])]
        return operation

    def resolve(self, node):
        while isinstance(node, dict) and "$ref" in node:
            node = self.at(node["$ref"])
        return node

    def at(self, reference):
        """What "#/a/b" points to; KeyError."""
        node = self.document
        assert reference.startswith("#/"), reference
        for part in reference[2:].split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        return node

    def schema(self, node):
        """A schema that stands alone and lets no member pass that is not described. (OpenAPI 3.1's are JSON Schema 2020-12.)"""
        node = copy.deepcopy(self.resolve(node))
        if not isinstance(node, dict):
            return node
        for part in node.pop("allOf", []):
            part = self.schema(part)
            node["type"] = "object"
            node.setdefault("properties", {}).update(part.get("properties", {}))
            node["required"] = node.get("required", []) + part.get("required", [])
        for key in ("items", "additionalProperties"):
            if key in node:
                node[key] = self.schema(node[key])
        for key in ("anyOf", "oneOf"):
            node.update({key: [self.schema(one) for one in node[key]]} if key in node else {})
        if "properties" in node:
            node["properties"] = {name: self.schema(one) for name, one in node["properties"].items()}
            node.setdefault("additionalProperties", False)
        return node

    def check(self, value, node, what):
        validator = jsonschema.Draft202012Validator(self.schema(node))
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        assert error is None, f"{what}: at {'/'.join(map(str, error.absolute_path)) or 'its root'}: {error.message}"

    def find(self, method, target):
        """The path of the operation that a request is for; None: there is none. One without a parameter goes first."""
        path = target.partition("?")[0]
        found = [pattern for verb, pattern in self.operations
                 if verb == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path)]
        return min(found, key=lambda pattern: pattern.count("{"), default=None)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("droverd", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Client:
    """.seen has the operations that succeeded, .problems the statuses of those that did not."""

    def __init__(self, spec, connect):
        """connect(timeout) -> http.client.HTTPConnection"""
        self.spec, self.connect = spec, connect
        self.seen, self.problems = set(), {}

    @classmethod
    def of(cls, spec, daemon):
        return cls(spec, lambda timeout: UnixConnection(daemon.run_dir / "api.sock", timeout))

    def call(self, method, target, body=None, status=None, raw=None):
        """The answer's JSON (text, where it is another type), valid. status: what must come; else any success. raw: a body as it is."""
        pattern = self.spec.find(method, target)
        if raw is None and body is not None:
            raw = json.dumps(body)
        connection = self.connect(120)
        try:
            connection.request(method, target, raw, {"Content-Type": "application/json"} if raw else {})
            answer = connection.getresponse()
            kind = (answer.headers.get("Content-Type") or "").partition(";")[0]
            data = answer.read()
        finally:
            connection.close()
        what = f"{method} {target}: {answer.status} {data[:500]!r}"
        assert answer.status == status if status else answer.status < 300, what
        if answer.status >= 400:
            return self._problem(method, pattern, answer, kind, data, what)
        self._check_request(method, pattern, target, body, what)
        operation = self.spec.operations[method, pattern]
        content = self.spec.resolve(operation["responses"][str(answer.status)]).get("content", {})
        self.seen.add((method, pattern))
        if not content:
            assert not data and not kind, what
            return None
        assert kind in content, f"{what}: {kind} is not among {list(content)}"
        value = json.loads(data) if kind == "application/json" else data.decode()
        self.spec.check(value, content[kind]["schema"], what)
        return value

    def _problem(self, method, pattern, answer, kind, data, what):
        assert kind == "application/problem+json", what
        problem = json.loads(data)
        self.spec.check(problem, {"$ref": "#/components/schemas/Problem"}, what)
        assert problem["status"] == answer.status, what
        if pattern:
            assert "default" in self.spec.operations[method, pattern]["responses"], what
        self.problems.setdefault(answer.status, set()).add((method, pattern))
        return problem

    def _check_request(self, method, pattern, target, body, what):
        """What droverd takes is described, too."""
        operation = self.spec.operations[method, pattern]
        known = {one["name"]: one["schema"] for one in operation["parameters"] if one["in"] == "query"}
        for name, value in urllib.parse.parse_qsl(target.partition("?")[2]):
            assert name in known, f"{what}: there is no parameter '{name}'"
            self.spec.check(json.loads(value) if known[name]["type"] in ("integer", "boolean") else value, known[name], what)
        described = self.spec.resolve(operation.get("requestBody"))
        assert described or not body, f"{what}: no body is described"
        if described and (body is not None or described.get("required")):
            self.spec.check(body, described["content"]["application/json"]["schema"], f"the request of {what}")
