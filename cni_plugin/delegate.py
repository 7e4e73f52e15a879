"""IPAM plugins of others: executed as the CNI specification says (section 4).

The plugin is looked for in the folders of CNI_PATH by its bare name; it gets podwire's own
environment and stdin, and its reply is passed on. Its name has been checked by
`netconf.ipam_type`: it is never a path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from cni_plugin.execute import execute
from cni_plugin.fields import Fields, shown
from cni_plugin.results import decode_result
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code, Request, Result
from cni_plugin.typed import Any

NESTED = "PODWIRENESTED"  # set for delegates: podwire as its own delegate would never end


class Delegate:
    """One IPAM plugin, for one request. `environ` is what podwire itself was called with;
    `interrupted` tells whether podwire has been asked to end."""

    def __init__(
        self,
        kind: str,
        request: Request,
        environ: Mapping[str, str],
        interrupted: Callable[[], bool],
    ) -> None:
        self._kind = kind
        self._request = request
        self._environ = environ
        self._interrupted = interrupted

    def add(self) -> Result:
        """The delegate's result. A delegate that fails is sent a DEL (specification, section 4)."""
        self._executable()  # one that is not there needs no DEL
        try:
            reply = self._run("ADD")
            return _result(Fields(reply, f"{self._kind}: result"), self._request.version)
        except CniError as failure:
            try:
                self.delete()
            except CniError as e:
                failure.details = f"{failure.details}; its DEL failed too: {e.msg}".lstrip("; ")
            raise

    def delete(self) -> None:
        self._run("DEL")

    def check(self) -> None:
        self._run("CHECK")

    def collect(self) -> None:
        """Forward GC."""
        self._run("GC")

    def status(self) -> None:
        self._run("STATUS")

    def _run(self, command: str) -> Mapping[str, Any]:
        """Execute the plugin; its stdout as JSON for ADD, {} otherwise."""
        if self._environ.get(NESTED):
            raise CniError(
                Code.INVALID_CONFIG,
                f"ipam.type: {self._kind} is podwire itself, under another name",
                "podwire's own IPAM is ipam.type host-local",
            )
        executable = self._executable()
        environ = {**self._environ, "CNI_COMMAND": command, NESTED: "1"}
        # Only an ADD is given up for a signal: the others clean up, or take no time.
        interrupted = self._interrupted if command == "ADD" else lambda: False
        try:
            status, stdout = execute(executable, environ, self._request.config, interrupted)
        except OSError as e:
            raise CniError(
                Code.DELEGATE_FAILED,
                f"ipam.type: {self._kind} could not be executed: {e.strerror}",
            ) from e
        if status != 0:
            raise self._failure(command, status, stdout)
        if command != "ADD":
            return {}
        reply = _json_object(stdout)
        if reply is None:
            raise CniError(
                Code.DELEGATE_FAILED,
                f"ipam.type: {self._kind} answered ADD with {shown(_text(stdout))}, which is"
                " no CNI result",
            )
        return reply

    def _executable(self) -> str:
        if not self._request.path:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"required environment variables missing: CNI_PATH (ipam.type {self._kind} is"
                " executed from there)",
            )
        for folder in self._request.path:
            candidate = os.path.join(folder, self._kind)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                return candidate
        raise CniError(
            Code.DELEGATE_FAILED,
            f"ipam.type: no plugin {shown(self._kind)} in CNI_PATH {':'.join(self._request.path)}",
            "install it there, or use ipam.type host-local, which podwire serves itself",
        )

    def _failure(self, command: str, status: int, stdout: bytes) -> CniError:
        """The delegate's own error, with its code where it gave one."""
        reply = _json_object(stdout) or {}
        code, msg, details = reply.get("code"), reply.get("msg"), reply.get("details")
        if not isinstance(code, int) or isinstance(code, bool) or code <= 0:
            code = Code.DELEGATE_FAILED
        if not isinstance(msg, str):
            msg = f"exit status {status}, stdout {shown(_text(stdout))}"
        return CniError(
            code,
            f"ipam.type: {self._kind} failed on {command}: {msg}",
            details if isinstance(details, str) else "",
        )


def _result(reply: Fields, version: str) -> Result:
    """The reply in the version it says it has; the request's, where it says none."""
    said = reply.text("cniVersion") or version
    return decode_result(reply, said if said in SUPPORTED_VERSIONS else version)


def _json_object(data: bytes) -> Mapping[str, Any] | None:
    from json import loads

    try:
        value = loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(data: bytes) -> str:
    return data[:200].decode("utf-8", "replace")
