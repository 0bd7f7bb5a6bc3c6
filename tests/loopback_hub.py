"""A small Hub on 127.0.0.1, enough of one for the real huggingface_hub client to push to and load from.

The client reads HF_ENDPOINT when it is imported, so it has to run in a process of its own:

    with loopback_hub(tmp_path) as endpoint:
        subprocess.run([sys.executable, "-c", script], env=client_environment(endpoint, tmp_path / "home"), check=True)
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

USER = "me"  # whom every token belongs to
ORGANIZATION = "ssl-hub"  # whose member the user is; no one else may be written to


@contextmanager
def loopback_hub(tmp_path: Path) -> Iterator[str]:
    """Runs the Hub, its files under `tmp_path`, and yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    server.blobs = tmp_path / "loopback_hub_blobs"
    server.blobs.mkdir()
    server.lock = threading.Lock()
    server.repos = {}  # repo id -> {branch: list of commits, each {path: entry of the tree}}
    server.private = set()  # their ids
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets this process push there, logged in; what loads, and has a cache, needs a process of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    url = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", "dummy")
    return endpoint


def client_environment(endpoint: str, hf_home: Path, token: str | None = "dummy") -> dict[str, str]:  # noqa: S107
    """The environment of a process whose Hub is `endpoint`: a home of its own and, unless None, a login."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE_"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(hf_home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    return environment if token is None else environment | {"HF_TOKEN": token}


class _Error(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets, and the second would wait 40 ms

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self):
        self.body = self._read_body()
        path = urlsplit(self.path).path
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for route_method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path)
                if method == route_method and match:
                    if method == "POST" and action != _Handler.validate_yaml and "Authorization" not in self.headers:
                        raise _Error(401, "Unauthorized", "Invalid username or password.")
                    with self.server.lock:
                        groups = {name: value and unquote(value) for name, value in match.groupdict().items()}
                        status, headers, content = action(self, **groups)
                    break
            else:
                raise _Error(404, "NoRoute", f"The loopback Hub does not know {self.command} {path}.")
        except _Error as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            status, content = error.status, {"error": str(error)}
        if not isinstance(content, bytes):
            headers["Content-Type"] = "application/json"
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    # ------------------------------------------------------------------ account and repositories

    def whoami(self):
        if "Authorization" not in self.headers:
            raise _Error(401, "Unauthorized", "Invalid username or password.")
        token = {"displayName": "dummy", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        return 200, {}, {"type": "user", "name": USER, "orgs": [{"name": ORGANIZATION}], "auth": auth}

    def create_repo(self):
        request = json.loads(self.body)
        owner = request.get("organization") or USER
        repo_id = f"{owner}/{request['name']}"
        if owner not in (USER, ORGANIZATION):
            raise _Error(
                403, "Forbidden", f'You don\'t have the rights to create a model under the namespace "{owner}"'
            )
        answer = {"url": f"{self.server.endpoint}/{repo_id}", "id": repo_id}
        if repo_id in self.server.repos:
            return 409, {}, answer | {"error": "You already created this model repo"}
        self.server.repos[repo_id] = {"main": [{}]}
        if request.get("private") or request.get("visibility") == "private":
            self.server.private.add(repo_id)
        return 200, {}, answer

    def create_branch(self, repo_id, branch):
        branches = self._branches(repo_id)
        if branch in branches:
            raise _Error(409, "Conflict", f"The branch {branch} exists")
        branches[branch] = list(branches["main"])
        return 200, {}, {}

    # ------------------------------------------------------------------ upload

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            is_valid = match is None or isinstance(yaml.safe_load(match[1]), dict)
        except yaml.YAMLError:
            is_valid = False
        if not is_valid:
            return 400, {}, {"errors": [{"message": "invalid YAML"}], "warnings": []}
        return 200, {}, {"errors": [], "warnings": [] if match else [{"message": "empty or missing yaml metadata"}]}

    def preupload(self, repo_id, revision):
        files = []
        for file in json.loads(self.body)["files"]:
            entry = self._tree(repo_id, revision)[1].get(file["path"], {})
            oid = entry["lfs"]["oid"] if "lfs" in entry else entry.get("oid")
            mode = "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {}, {"files": files}

    def lfs_batch(self, repo_id):
        self._branches(repo_id)
        objects = []
        for item in json.loads(self.body)["objects"]:
            missing = not (self.server.blobs / item["oid"]).exists()
            upload = {"actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{item['oid']}"}}} if missing else {}
            objects.append({"oid": item["oid"], "size": item["size"], **upload})
        return 200, {}, {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Error(400, "BadRequest", "The content does not have the announced sha256")
        (self.server.blobs / oid).write_bytes(self.body)
        return 200, {}, b""

    def commit(self, repo_id, revision):
        tree = dict(self._tree(repo_id, revision)[1])
        answer = {"success": True}
        if "create_pr=1" in self.path:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in self._branches(repo_id))
            revision = f"refs/pr/{number}"
            self._branches(repo_id)[revision] = []
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{repo_id}/discussions/{number}"
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
                (self.server.blobs / oid).write_bytes(content)
                tree[value["path"]] = {"type": "file", "path": value["path"], "oid": oid, "size": len(content)}
            elif key == "lfsFile":
                if not (self.server.blobs / value["oid"]).exists():
                    raise _Error(400, "BadRequest", f"{value['path']} was committed before it was uploaded")
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {value['size']}\n"
                )
                git_oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer.encode()).hexdigest()  # noqa: S324
                lfs = {"oid": value["oid"], "size": value["size"], "pointerSize": len(pointer)}
                entry = {"type": "file", "path": value["path"], "oid": git_oid, "size": value["size"], "lfs": lfs}
                tree[value["path"]] = entry
            elif key == "deletedFile":
                tree.pop(value["path"])
        self.server.repos[repo_id][revision].append(tree)
        sha = self._tree(repo_id, revision)[0]
        url = f"{self.server.endpoint}/{repo_id}/commit/{sha}"
        return 200, {}, answer | {"commitUrl": url, "commitOid": sha}

    # ------------------------------------------------------------------ download

    def model_info(self, repo_id, revision="main"):
        sha, tree = self._tree(repo_id, revision)
        siblings = [{"rfilename": path} for path in sorted(tree)]
        return (
            200,
            {},
            {"id": repo_id, "sha": sha, "private": repo_id in self.server.private, "tags": [], "siblings": siblings},
        )

    def tree(self, repo_id, revision, folder=None):
        _, tree = self._tree(repo_id, revision)
        prefix = f"{folder}/" if folder else ""
        entries = [entry for path, entry in sorted(tree.items()) if path.startswith(prefix)]
        if folder and not entries:
            raise _Error(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        if "recursive=True" not in self.path and "recursive=true" not in self.path:
            children = [entry["path"].removeprefix(prefix).split("/") for entry in entries]
            folders = {parts[0] for parts in children if len(parts) > 1}
            entries = [entry for entry, parts in zip(entries, children, strict=True) if len(parts) == 1]
            entries += [
                {"type": "directory", "path": prefix + name, "oid": "0" * 40, "size": 0} for name in sorted(folders)
            ]
        return 200, {}, entries

    def resolve(self, repo_id, revision, path):
        sha, tree = self._tree(repo_id, revision)
        if path not in tree:
            raise _Error(404, "EntryNotFound", f"{path} does not exist on {revision}")
        entry = tree[path]
        oid = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        content = (self.server.blobs / oid).read_bytes()
        return 200, {"ETag": f'"{oid}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}, content

    def _branches(self, repo_id) -> dict:
        if repo_id not in self.server.repos:
            raise _Error(404, "RepoNotFound", "Repository not found")
        return self.server.repos[repo_id]

    def _tree(self, repo_id, revision) -> tuple[str, dict]:
        """The commit hash and the files of a branch's head, or of a commit given by its hash."""
        branches = self._branches(repo_id)
        for branch, commits in branches.items():
            for number, tree in reversed(list(enumerate(commits))):
                sha = hashlib.sha1(f"{repo_id} {branch} {number}".encode()).hexdigest()  # noqa: S324
                if revision in (branch, sha):
                    return sha, tree
        raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create_repo),
    ("POST", f"/api/models/{_REPO}/branch/(?P<branch>.+)", _Handler.create_branch),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", f"/api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    ("GET", f"/api/models/{_REPO}/tree/{_REVISION}(/(?P<folder>.+))?", _Handler.tree),
    ("GET", f"/api/models/{_REPO}/revision/{_REVISION}", _Handler.model_info),
    ("GET", f"/api/models/{_REPO}", _Handler.model_info),
    ("GET", f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
