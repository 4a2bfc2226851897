"""The routes of the loopback Hub, which answer as the real Hub does."""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from urllib.parse import unquote

import yaml
from hub_server import USER, Answer, Handler, LoopbackHub, Repo


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".png", ".onnx", ".wasm", ".parquet"))


def _oid(hub: LoopbackHub, path: str, sha: str) -> str:
    blob = hub.blobs[sha]
    return sha if _is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()


def create(request: Handler) -> None:
    asked = request.json()
    request.known(required=True)
    owner = asked.get("organization") or USER
    repo_id = {"space": "spaces/", "dataset": "datasets/"}.get(asked.get("type"), "") + f"{owner}/{asked['name']}"
    if owner != USER:
        raise Answer(403, {"error": "Forbidden"}, X_Error_Message="you may not create here")
    if repo_id in request.hub.repos:
        raise Answer(409, {"error": "You already created this model repo"})
    private = asked.get("private", asked["visibility"] == "private" if "visibility" in asked else None)
    repo = Repo(private=request.hub.private_by_default if private is None else private)
    repo.sdk = asked.get("sdk")
    repo.refs["main"] = repo.commit(None, "initial commit", {})
    request.hub.repos[repo_id] = repo
    raise Answer(200, {"url": f"{request.hub.endpoint}/{repo_id}"})


def info(request: Handler, repo: str, revision: str = "main") -> None:
    found = request.repo(repo)
    oid, tree = request.tree(found, revision)
    siblings = [{"rfilename": path} for path in tree]
    name = repo.removeprefix("datasets/").removeprefix("spaces/")
    raise Answer(200, {"id": name, "sha": oid, "private": found.private, "siblings": siblings, "tags": []})


def listing(request: Handler, repo: str, revision: str, folder: str | None = None) -> None:
    _, tree = request.tree(request.repo(repo), revision)
    start = f"{unquote(folder)}/" if folder else ""
    inside = [path for path in tree if path.startswith(start)]
    if folder and not inside:
        raise Answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
    if request.query.get("recursive") == "true":
        raise Answer(200, [_row(request.hub, path, tree) for path in inside])
    children = {start + path.removeprefix(start).split("/")[0] for path in inside}
    raise Answer(200, [_row(request.hub, path, tree) for path in sorted(children)])


def _row(hub: LoopbackHub, path: str, tree: dict[str, str]) -> dict[str, object]:
    if path not in tree:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    return {"type": "file", "path": path, "size": len(hub.blobs[tree[path]]), "oid": _oid(hub, path, tree[path])}


def branch(request: Handler, repo: str, name: str) -> None:
    found = request.repo(repo, write=True)
    if unquote(name) in found.refs:
        raise Answer(409, {"error": "Reference already exists"})
    found.refs[unquote(name)] = found.resolve(request.json().get("startingPoint", "main"))
    raise Answer(200, {})


def validate_yaml(request: Handler) -> None:
    block = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    try:
        good = isinstance(yaml.safe_load(block[1]), dict) if block else True
    except yaml.YAMLError:
        good = False
    raise Answer(200, {"errors": [], "warnings": []}) if good else Answer(400, {"errors": [{"message": "bad YAML"}]})


def preupload(request: Handler, repo: str, revision: str) -> None:
    _, tree = request.tree(request.repo(repo, write=True), revision)
    rows = []
    for file in request.json()["files"]:
        path = file["path"]
        row = {"path": path, "uploadMode": "lfs" if _is_lfs(path) else "regular", "shouldIgnore": False}
        rows.append(row | ({"oid": _oid(request.hub, path, tree[path])} if path in tree else {}))
    raise Answer(200, {"files": rows})


def batch(request: Handler, repo: str) -> None:
    request.repo(repo)
    request.known(required=True)
    objects = []
    for item in request.json()["objects"]:
        row = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in request.hub.blobs:
            row["actions"] = {"upload": {"href": f"{request.hub.endpoint}/lfs/{item['oid']}"}}
        objects.append(row)
    raise Answer(200, {"transfer": "basic", "objects": objects})


def put(request: Handler, sha: str) -> None:
    if hashlib.sha256(request.body).hexdigest() != sha:
        raise Answer(400, {"error": "the content does not match its sha256"})
    request.hub.blobs[sha] = request.body
    raise Answer(200, {})


def commit(request: Handler, repo: str, revision: str) -> None:
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


def resolve(request: Handler, repo: str, revision: str, path: str) -> None:
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


_REPO = r"(?P<repo>(?:(?:spaces|datasets)/)?[^/]+/[^/]+)"  # others than models: spaces/OWNER/NAME
_API = rf"/api/(?:models/)?{_REPO}"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("POST",), r"/api/repos/create", create),
    (("POST",), r"/api/validate-yaml", validate_yaml),
    (("GET",), _API, info),
    (("GET",), rf"{_API}/revision/(?P<revision>[^/]+)", info),
    (("GET",), rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", listing),
    (("POST",), rf"{_API}/branch/(?P<name>[^/]+)", branch),
    (("POST",), rf"{_API}/preupload/(?P<revision>[^/]+)", preupload),
    (("POST",), rf"{_API}/commit/(?P<revision>[^/]+)", commit),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", batch),
    (("PUT",), r"/lfs/(?P<sha>[0-9a-f]{64})", put),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
