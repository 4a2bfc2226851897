"""A Hub on 127.0.0.1: the parts of the protocol that pushing and loading a model use, and faults on demand.

Repositories are kept as git keeps them, commits that name whole trees and branches that name commits, so that a test
can ask what a repository holds after a push that failed. The clients are the genuine ones.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopbackSecretToken0123456789"
USER = "tester"


@dataclass
class Fault:
    """Something that goes wrong with the requests whose `METHOD path` the pattern finds.

    `what` is a status code, `cut` (connection closed before the request is acted on), `lost` (acted on, but the answer
    never arrives), `half` (an answer's body ends in the middle), `corrupt` (an upload arrives, or a download leaves,
    with a byte changed), `silent` (no answer for twenty seconds, then the end of the connection) or `stop` (the server
    goes away for good).
    """

    pattern: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    private: bool
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
    """An answer that ends the handling of a request."""

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
        self.gone = threading.Event()
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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


class _Handler(BaseHTTPRequestHandler):
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
                raise Answer(what, b"<html>an injected fault</html>", **fault.headers)  # as proxies answer
            for method, pattern, action in _ROUTES:
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

    @property
    def known(self) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Answer(401, {}, X_Error_Message="Invalid credentials in Authorization header")
        return given is not None

    def repo(self, repo_id: str, *, write: bool = False) -> Repo:
        known, repo = self.known, self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not known):
            raise Answer(404 if known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if write and not known:
            raise Answer(401, {"error": "Unauthorized"})
        if write and not repo_id.startswith(f"{USER}/") and "create_pr" not in self.query:
            raise Answer(403, {"error": "Forbidden"}, X_Error_Message="you may not write here")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, str]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return oid, repo.commits[oid]["tree"]

    def json(self) -> Any:
        return json.loads(self.body)


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".png", ".onnx"))


def _oid(hub: LoopbackHub, path: str, sha: str) -> str:
    blob = hub.blobs[sha]
    return sha if _is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()


def whoami(request: _Handler) -> None:
    if not request.known:
        raise Answer(401, {"error": "Unauthorized"})
    raise Answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})


def create(request: _Handler) -> None:
    asked = request.json()
    if not request.known:
        raise Answer(401, {"error": "Unauthorized"})
    owner = asked.get("organization") or USER
    repo_id = f"{owner}/{asked['name']}"
    if owner != USER:
        raise Answer(403, {"error": "Forbidden"}, X_Error_Message="you may not create here")
    if repo_id in request.hub.repos:
        raise Answer(409, {"error": "You already created this model repo"})
    repo = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
    repo.refs["main"] = repo.commit(None, "initial commit", {})
    request.hub.repos[repo_id] = repo
    raise Answer(200, {"url": f"{request.hub.endpoint}/{repo_id}"})


def info(request: _Handler, repo: str, revision: str = "main") -> None:
    found = request.repo(repo)
    oid, tree = request.tree(found, revision)
    siblings = [{"rfilename": path} for path in tree]
    raise Answer(200, {"id": repo, "sha": oid, "private": found.private, "siblings": siblings, "tags": []})


def list_tree(request: _Handler, repo: str, revision: str, folder: str | None = None) -> None:
    _, tree = request.tree(request.repo(repo), revision)
    rows = []
    for path, sha in tree.items():
        size = len(request.hub.blobs[sha])
        row = {"type": "file", "path": path, "size": size, "oid": _oid(request.hub, path, sha)}
        if _is_lfs(path):
            row["lfs"] = {"oid": sha, "size": size, "pointerSize": 130}
        if not folder or path.startswith(f"{folder}/"):
            rows.append(row)
    raise Answer(200, rows)


def refs(request: _Handler, repo: str) -> None:
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": o} for n, o in request.repo(repo).refs.items()]
    raise Answer(200, {"branches": branches, "tags": [], "converts": []})


def branch(request: _Handler, repo: str, name: str) -> None:
    found = request.repo(repo, write=True)
    if unquote(name) in found.refs:
        raise Answer(409, {"error": "Reference already exists"})
    found.refs[unquote(name)] = found.resolve(request.json().get("startingPoint", "main"))
    raise Answer(200, {})


def validate_yaml(request: _Handler) -> None:
    block = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    try:
        good = isinstance(yaml.safe_load(block[1]), dict) if block else True
    except yaml.YAMLError:
        good = False
    raise Answer(200, {"errors": [], "warnings": []}) if good else Answer(400, {"errors": [{"message": "bad YAML"}]})


def preupload(request: _Handler, repo: str, revision: str) -> None:
    _, tree = request.tree(request.repo(repo, write=True), revision)
    rows = []
    for file in request.json()["files"]:
        path = file["path"]
        row = {"path": path, "uploadMode": "lfs" if _is_lfs(path) else "regular", "shouldIgnore": False}
        rows.append(row | ({"oid": _oid(request.hub, path, tree[path])} if path in tree else {}))
    raise Answer(200, {"files": rows})


def batch(request: _Handler, repo: str) -> None:
    request.repo(repo)
    if not request.known:
        raise Answer(401, {"error": "Unauthorized"})
    objects = []
    for item in request.json()["objects"]:
        row = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in request.hub.blobs:
            row["actions"] = {"upload": {"href": f"{request.hub.endpoint}/lfs/{item['oid']}"}}
        objects.append(row)
    raise Answer(200, {"transfer": "basic", "objects": objects})


def put(request: _Handler, sha: str) -> None:
    if hashlib.sha256(request.body).hexdigest() != sha:
        raise Answer(400, {"error": "the content does not match its sha256"})
    request.hub.blobs[sha] = request.body
    raise Answer(200, {})


def commit(request: _Handler, repo: str, revision: str) -> None:
    found = request.repo(repo, write=True)
    parent, tree = request.tree(found, revision)
    tree, header = dict(tree), {}
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            header = value
        elif item["key"] == "file":
            content = base64.b64decode(value["content"])
            tree[value["path"]] = hashlib.sha256(content).hexdigest()
            request.hub.blobs[tree[value["path"]]] = content
        elif item["key"] == "lfsFile":
            if value["oid"] not in request.hub.blobs:
                raise Answer(400, {"error": f"LFS object of {value['path']} was never uploaded"})
            tree[value["path"]] = value["oid"]
        elif item["key"] == "deletedFile":
            del tree[value["path"]]
    if header.get("parentCommit", parent) != parent:
        raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
    oid = found.commit(parent, header["summary"], tree)
    answer = {"commitUrl": f"{request.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid, "success": True}
    if "create_pr" in request.query:
        number = next(n for n in itertools.count(1) if f"refs/pr/{n}" not in found.refs)
        found.refs[f"refs/pr/{number}"] = oid
        answer["pullRequestUrl"] = f"{request.hub.endpoint}/{repo}/discussions/{number}"
    else:
        found.refs[unquote(revision)] = oid
    raise Answer(200, answer)


def resolve(request: _Handler, repo: str, revision: str, path: str) -> None:
    oid, tree = request.tree(request.repo(repo), revision)
    path = unquote(path)
    if path not in tree:
        raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
    blob, start = request.hub.blobs[tree[path]], 0
    if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
        start = int(match[1])
    etag = f'"{_oid(request.hub, path, tree[path])}"'
    extra = {"Content_Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"} if start else {}
    raise Answer(
        206 if start else 200, blob[start:], ETag=etag, X_Repo_Commit=oid, X_Linked_Size=str(len(blob)), **extra
    )


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/models/{_REPO}"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), r"/api/whoami-v2", whoami),
    (("POST",), r"/api/repos/create", create),
    (("POST",), r"/api/validate-yaml", validate_yaml),
    (("GET",), _API, info),
    (("GET",), rf"{_API}/revision/(?P<revision>[^/]+)", info),
    (("GET",), rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", list_tree),
    (("GET",), rf"{_API}/refs", refs),
    (("POST",), rf"{_API}/branch/(?P<name>[^/]+)", branch),
    (("POST",), rf"{_API}/preupload/(?P<revision>[^/]+)", preupload),
    (("POST",), rf"{_API}/commit/(?P<revision>[^/]+)", commit),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", batch),
    (("PUT",), r"/lfs/(?P<sha>[0-9a-f]{64})", put),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
