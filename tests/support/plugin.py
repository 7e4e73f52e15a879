"""Runs a CNI plugin's executable as a runtime does: environment, stdin, exit code, stdout.

`Plugin.call` also holds every answer to the specification's rule for stdout: one JSON document on
failure, on ADD and on VERSION; nothing from CHECK, DEL, GC and STATUS that succeed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tests.support.netns import Namespace

Config = dict[str, Any]

_SILENT = ("CHECK", "DEL", "GC", "STATUS")
_PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Reply(NamedTuple):
    """One answer. `document` is stdout decoded, None when it was empty."""

    rc: int
    document: Any
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.rc == 0

    @property
    def code(self) -> int:
        """The error's code; 0 on success."""
        return 0 if self.ok else int(self.document["code"])

    @property
    def result(self) -> dict[str, Any]:
        """The result of a call that has to succeed."""
        assert self.ok, f"exit {self.rc}: {self.stdout}{self.stderr}"
        return self.document

    @property
    def error(self) -> dict[str, Any]:
        """The error document of a call that has to fail."""
        assert not self.ok, f"succeeded: {self.stdout}"
        return self.document

    def addresses(self) -> list[str]:
        """The addresses of a result with their prefix lengths, in any version's format."""
        result = self.result
        if "ips" in result:
            return [item["address"] for item in result["ips"]]
        return [result[key]["ip"] for key in ("ip4", "ip6") if key in result]


class Plugin:
    """A plugin's executable, on a node (a network namespace) or, without one, where we are."""

    def __init__(
        self, executable: str, node: Namespace | None = None, cni_path: str | None = None
    ) -> None:
        self.executable = executable
        self.node = node
        self.cni_path = os.path.dirname(executable) if cni_path is None else cni_path

    def on(self, node: Namespace) -> Plugin:
        return Plugin(self.executable, node, self.cni_path)

    def finding(self, cni_path: str) -> Plugin:
        """The same plugin with another CNI_PATH."""
        other = copy.copy(self)
        other.cni_path = cni_path
        return other

    def environ(self, command: str, values: Mapping[str, str | None]) -> dict[str, str]:
        """The environment of a call: PATH, coverage when it is measured, and the CNI variables."""
        names = ("PATH", "HOME", "LANG", "PODWIRE_TEST_RUN")
        env = {name: os.environ[name] for name in names if name in os.environ}
        if os.environ.get("PODWIRE_COVERAGE"):
            env["COVERAGE_PROCESS_START"] = os.path.join(_PROJECT, "pyproject.toml")
            env["COVERAGE_FILE"] = os.environ["PODWIRE_COVERAGE"]
        env |= {"CNI_COMMAND": command, "CNI_PATH": self.cni_path}
        for name, value in values.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        return env

    def words(self) -> list[str]:
        """What starts it where it is to run."""
        return [self.executable]

    def argv(self) -> list[str]:
        """What starts it there from outside."""
        return [*(self.node.prefix() if self.node else []), *self.words()]

    @contextlib.contextmanager
    def placed(self) -> Iterator[list[str]]:
        """The words that start it in this block, where a program less is needed than by `argv`."""
        if isinstance(self.node, Namespace):
            with self.node.entered():
                yield self.words()
        else:
            yield self.argv()

    def start(
        self, command: str, conf: Config | str | bytes, env: Mapping[str, str | None]
    ) -> subprocess.Popen:
        """Start a call and write its stdin; for tests that kill it or run many at once."""
        with self.placed() as argv:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environ(command, env),
            )
        assert process.stdin is not None
        try:
            process.stdin.write(_encoded(conf))
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        return process

    def call(
        self,
        command: str,
        conf: Config | str | bytes,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 60,
    ) -> Reply:
        """One call. `env` holds CNI variables; None as a value takes a variable away."""
        with self.placed() as argv:
            done = subprocess.run(
                argv,
                input=_encoded(conf),
                capture_output=True,
                check=False,
                env=self.environ(command, env or {}),
                timeout=timeout,
            )
        reply = read_reply(done.returncode, done.stdout, done.stderr)
        hold_to_specification(command, reply)
        return reply

    # --- the commands --------------------------------------------------------------------------

    def add(self, conf: Config, sandbox: Namespace | str, **more: Any) -> Reply:
        return self._attachment("ADD", conf, sandbox, **more)

    def check(self, conf: Config, sandbox: Namespace | str, **more: Any) -> Reply:
        return self._attachment("CHECK", conf, sandbox, **more)

    def delete(self, conf: Config, sandbox: Namespace | str | None, **more: Any) -> Reply:
        return self._attachment("DEL", conf, sandbox, **more)

    def gc(self, conf: Config, valid: list[tuple[str, str]] | None) -> Reply:
        """GC with the attachments that are to stay; None leaves the key out."""
        if valid is not None:
            pairs = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
            conf = {**conf, "cni.dev/valid-attachments": pairs, "cni.dev/attachments": pairs}
        return self.call("GC", conf)

    def status(self, conf: Config) -> Reply:
        return self.call("STATUS", conf)

    def version(self, version: str = "1.1.0") -> Reply:
        return self.call("VERSION", {"cniVersion": version})

    def _attachment(
        self,
        command: str,
        conf: Config,
        sandbox: Namespace | str | None,
        *,
        cid: str | None = None,
        ifname: str = "eth0",
        args: str | None = None,
        prev: Config | None = None,
    ) -> Reply:
        """The container ID is the sandbox's name unless given; `prev` becomes prevResult."""
        path = sandbox.path if isinstance(sandbox, Namespace) else sandbox
        if cid is None:
            cid = sandbox.name if isinstance(sandbox, Namespace) else "ctr"
        if prev is not None:
            conf = {**conf, "prevResult": prev}
        env = {
            "CNI_CONTAINERID": cid,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": path,
            "CNI_ARGS": args,
        }
        return self.call(command, conf, env)


def read_reply(rc: int, stdout: bytes, stderr: bytes) -> Reply:
    """Decode what a plugin wrote; stdout has to be empty or exactly one JSON document."""
    text = stdout.decode()
    try:
        document = json.loads(text) if text.strip() else None
    except json.JSONDecodeError as e:
        raise AssertionError(
            f"stdout is not one JSON document ({e}): {text!r}\nstderr: {stderr.decode()}"
        ) from e
    return Reply(rc, document, text, stderr.decode())


def hold_to_specification(command: str, reply: Reply) -> None:
    """Assert what the specification asks of stdout for this command."""
    shown = f"{command}: exit {reply.rc}\nstdout: {reply.stdout}\nstderr: {reply.stderr}"
    if not reply.ok:
        assert isinstance(reply.document, dict), f"a failure without an error document\n{shown}"
        assert isinstance(reply.document.get("code"), int), f"an error without a code\n{shown}"
        assert reply.document.get("msg"), f"an error without a message\n{shown}"
    elif command in _SILENT:
        assert reply.document is None, f"success has nothing to say here\n{shown}"
    else:
        assert isinstance(reply.document, dict), f"a success without a document\n{shown}"


def find_executable(name: str, variable: str) -> str | None:
    """A console script of the project: $<variable>, or beside the Python that runs the tests."""
    path = os.environ.get(variable) or os.path.join(os.path.dirname(sys.executable), name)
    return os.path.abspath(path) if os.access(path, os.X_OK) else None


def _encoded(conf: Config | str | bytes) -> bytes:
    if isinstance(conf, bytes):
        return conf
    return (conf if isinstance(conf, str) else json.dumps(conf)).encode()
