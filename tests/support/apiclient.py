"""A JSON client of the Kubernetes API for tests: what they do to a cluster and ask of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import urllib.parse
from typing import Any

from tests.support.netns import Namespace

MERGE = "application/merge-patch+json"
_JSON = "application/json"

Object = dict[str, Any]  # an API object as JSON has it


class ApiError(Exception):
    """The API server refused: `status` is that of HTTP, `body` what it said."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class Api:
    """A JSON client of one user, with one connection that stays open: one for each thread."""

    def __init__(self, url: str, ca: str, token: str, place: Namespace | None = None) -> None:
        self._token, self._place = token, place
        parts = urllib.parse.urlsplit(url)
        context = ssl.create_default_context(cafile=ca)
        assert parts.hostname is not None
        self._connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=30, context=context
        )

    def call(
        self, method: str, path: str, body: Object | str | None = None, kind: str = _JSON
    ) -> Object:
        """The decoded answer. Raises ApiError, OSError when the API server is away."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        data = body if body is None or isinstance(body, str) else json.dumps(body)
        with self._place.entered() if self._place else contextlib.nullcontext():
            status, answer = self._exchange(method, path, data, headers)
        if status >= 300:
            raise ApiError(status, answer)
        decoded = json.loads(answer) if answer.startswith("{") else {"text": answer}
        assert isinstance(decoded, dict)
        return decoded

    def _exchange(
        self, method: str, path: str, data: str | None, headers: dict[str, str]
    ) -> tuple[int, str]:
        fresh = self._connection.sock is None
        try:
            self._connection.request(method, path, data, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read().decode()
        except (http.client.HTTPException, OSError) as e:
            self._connection.close()
            if fresh:
                raise OSError(str(e)) from e
            return self._exchange(method, path, data, headers)  # it was closed while it was idle

    def get(self, path: str) -> Object:
        return self.call("GET", path)

    def create(self, path: str, body: Object) -> Object:
        return self.call("POST", path, body)

    def replace(self, path: str, body: Object) -> Object:
        return self.call("PUT", path, body)

    def patch(self, path: str, body: Object, kind: str = MERGE) -> Object:
        return self.call("PATCH", path, body, kind)

    def delete(self, path: str) -> Object:
        return self.call("DELETE", path)

    def close(self) -> None:
        self._connection.close()
