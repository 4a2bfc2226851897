"""A Hub on 127.0.0.1: the part of the protocol that pushing and loading a model use, with faults on demand.

Repositories are kept as git keeps them, commits that name whole trees and branches that name commits, so that a test
can ask what a repository holds after a push that failed. The clients are the genuine ones.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopbackSecretToken0123456789"
USER = "tester"


@dataclass
class Fault:
    """A failure of requests whose `METHOD path` matches the pattern.

    `what` is a status code, `cut` (connection closed before the request is acted on), `lost` (acted on, but the answer
    never arrives), `half` (an answer's body ends in the middle), `corrupt` (an upload arrives, or a download leaves,
    with a byte changed), `silent` (no answer for twenty seconds, then the end of the connection) or `stop` (the server
    goes away for good).
    """

    pattern: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"<html>an injected fault</html>"  # as proxies answer


@dataclass
class Repo:
    private: bool
    sdk: str | None = None  # of a Space
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)  # oid -> parent, message, tree {path: sha256}
    refs: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        revision = unquote(revision)
        return revision if revision in self.commits else self.refs.get(revision)

    def history(self, revision: str = "main") -> list[str]:
        oid, oids = self.resolve(revision), []
        while oid:
            oids.append(oid)
            oid = self.commits[oid]["parent"]
        return oids

    def commit(self, parent: str | None, message: str, tree: dict[str, str]) -> str:
        seed = json.dumps([parent, message, tree, len(self.commits)]).encode()
        oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid] = {"parent": parent, "message": message, "tree": tree}
        return oid


class Answer(Exception):
    """A response that ends the handling of a request."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        self.status, self.body = status, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class LoopbackHub:
    """The server; use it as a context manager. `log` lists what was asked, as `METHOD path -> status`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.stopped = False
        self.private_by_default = False  # a setting of organisations
        self.gone = threading.Event()
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.gone.set()
        self.stopped = True  # connections kept alive are closed by their own threads
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Return variables for a process that uses this Hub only, a cache in `home` and no login but `token`."""
        names = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token}
        names |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        return names | {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        oid = repo.resolve(revision)
        return {path: self.blobs[sha] for path, sha in repo.commits[oid]["tree"].items()} if oid else {}

    def asked(self, pattern: str) -> list[str]:
        return [line for line in self.log if re.search(pattern, line)]

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do(self) -> None:
        if self.hub.stopped:
            self.close_connection = True
            return
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        line = f"{self.command} {url.path}"
        fault = self.hub.take_fault(line)
        what = fault.what if fault else None
        self.body = self.read_body(half=what == "cut")
        if what == "stop":
            threading.Thread(target=self.hub.stop, daemon=True).start()
        if what in ("cut", "stop", "silent"):
            self.hub.log.append(f"{line} -> {what}")
            if what == "silent":
                self.hub.gone.wait(20)
            self.close_connection = True
            return
        if what == "corrupt" and self.command == "PUT":
            self.body = bytes([self.body[0] ^ 1]) + self.body[1:]
        try:
            if isinstance(what, int):
                raise Answer(what, fault.body, **fault.headers)
            from hub_routes import ROUTES  # which needs this module

            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method:
                    with self.hub.lock:
                        action(self, **match.groupdict())
            raise Answer(404, {"error": "no such address"})
        except Answer as answer:
            self.hub.log.append(f"{line} -> {what if what == 'lost' else answer.status}")
            if what == "lost":
                self.close_connection = True
                return
            self.send(answer, what)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def read_body(self, half: bool) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(length // 2 if half else length)

    def send(self, answer: Answer, what: int | str | None) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if what == "corrupt" and self.command == "GET":
            body = bytes([body[0] ^ 1]) + body[1:]
        if what == "half":
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)

    # what the routes below ask first

    def known(self, *, required: bool = False) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Answer(401, {}, X_Error_Message="Invalid credentials in Authorization header")
        if required and given is None:
            raise Answer(401, {"error": "Unauthorized"})
        return given is not None

    def repo(self, repo_id: str, *, write: bool = False) -> Repo:
        known, repo = self.known(required=write), self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not known):
            raise Answer(404 if known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if write and not re.match(rf"((spaces|datasets)/)?{USER}/", repo_id) and "create_pr" not in self.query:
            raise Answer(403, {"error": "Forbidden"}, X_Error_Message="you may not write here")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, str]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return oid, repo.commits[oid]["tree"]

    def json(self) -> Any:
        return json.loads(self.body)
