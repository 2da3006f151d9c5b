"""A model hub on loopback: enough of the Hugging Face hub's API for its own client to push to and pull from,
and to fail as the real one does.

Repositories live in memory; a commit is a name of 40 hex digits and the files that it has. The client uploads
large files by git-lfs, since the hub's newer storage (xet) is switched off by the fixture.
"""

import hashlib
import json
import re
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_" + "a" * 34
"""The one that may write, and read what is private or gated."""
LARGE = (".safetensors", ".gguf", ".bin", ".parquet")
"""Files that go by git-lfs."""

API = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", API + r"(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
    ("POST", API + r"/paths-info/(?P<revision>[^/]+)", "paths"),
    ("POST", API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", API + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/((?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
    ("GET", r"/((?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
]


@dataclass
class Repository:
    """Its commits, oldest first."""

    private: bool = False
    gated: bool = False
    licence: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The newest commit."""
        return next(reversed(self.commits))

    @property
    def files(self) -> dict[str, bytes]:
        """Of the newest commit."""
        return self.commits[self.head]

    def add(self, files: dict[str, bytes]) -> str:
        """A commit that adds files to those that are there."""
        whole = (self.files if self.commits else {}) | files
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(whole.items()):
            digest.update(f"{len(self.commits)} {name} {len(content)} ".encode() + content)
        self.commits[digest.hexdigest()] = whole
        return digest.hexdigest()


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, so many times."""

    pattern: str
    status: int = 0
    """0 breaks the connection in the middle of the answer, or of what is sent."""
    times: int = 1


class Hub:
    """The server, its repositories by (kind, name), and what it was asked."""

    def __init__(self) -> None:
        self.repositories = dict[tuple[str, str], Repository]()
        self.blobs = dict[str, bytes]()
        self.faults = list[Fault]()
        self.asked = list[str]()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, folder: Path, *, kind: str = "model", **options: Any) -> Repository:
        """A repository with the files of a folder."""
        repository = Repository(**options)
        repository.add({
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        })  # fmt: skip
        self.repositories[kind, name] = repository
        return repository

    def model(self, name: str) -> Repository:
        """A model's repository."""
        return self.repositories["model", name]

    def fault_of(self, request: str) -> Fault | None:
        """The fault of a request, METHOD /path, if it has one."""
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None


class _Answer(Exception):
    """A response that isn't what was asked for."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message or code}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """The requests of a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing: hub.asked has it."""

        def do_GET(self) -> None:
            self._serve("GET")

        def do_HEAD(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def do_PUT(self) -> None:
            self._serve("PUT")

        def _serve(self, method: str) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            fault = hub.fault_of(f"{self.command} {path}")
            if fault is not None and not fault.status and method != "GET":
                self._break()
                return
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                if fault is not None and fault.status:
                    raise _Answer(fault.status, "", "the hub says no")
                found = (
                    (m, name)
                    for verb, rule, name in ROUTES
                    if verb == method and (m := re.fullmatch(rule, path))
                )
                match, name = next(found, (None, ""))
                if match is None:
                    raise _Answer(404, "EntryNotFound")
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                content, headers = getattr(self, f"_{name}")(**parts)
                self._send(200, content, headers, cut=fault is not None)
            except _Answer as answer:
                self._send(answer.status, b"{}", answer.headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
            first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
            if first and status == 200:
                end = min(int(last or len(content) - 1), len(content) - 1)
                headers = headers | {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
                status, content = 206, content[int(first) : end + 1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self._break()

        def _break(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        @property
        def _knows_token(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _repository(self, kind: str, name: str, *, writes: bool = False) -> Repository:
            found = hub.repositories.get((kind, name))
            if writes and not self._knows_token:
                raise _Answer(401, "", "Invalid credentials in Authorization header")
            if found is None or (found.private and not self._knows_token):
                raise _Answer(404 if self._knows_token else 401, "RepoNotFound", "Repository not found")
            return found

        def _commit_of(self, repository: Repository, revision: str) -> str:
            if revision == "main":
                return repository.head
            if revision not in repository.commits:
                raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return revision

        def _whoami(self) -> tuple[bytes, dict[str, str]]:
            if not self._knows_token:
                raise _Answer(401, "", "Invalid credentials in Authorization header")
            return _json({"type": "user", "name": "someone", "auth": {"accessToken": {"role": "write"}}})

        def _validate(self) -> tuple[bytes, dict[str, str]]:
            return _json({"errors": [], "warnings": []})

        def _create(self) -> tuple[bytes, dict[str, str]]:
            if not self._knows_token:
                raise _Answer(401, "", "Invalid credentials in Authorization header")
            asked = json.loads(self.body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            kind = asked.get("type") or "model"
            if (kind, name) in hub.repositories:
                raise _Answer(409, "", "You already created this model repo")
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.repositories[kind, name] = Repository(private=private)
            hub.repositories[kind, name].add({".gitattributes": b"*.safetensors filter=lfs\n"})
            return _json({"url": f"{hub.url}/{name}", "name": name, "id": name})

        def _info(self, kind: str, name: str, revision: str = "main") -> tuple[bytes, dict[str, str]]:
            repository = self._repository(kind, name)
            commit = self._commit_of(repository, revision)
            files = [{"rfilename": path} for path in repository.commits[commit]]
            card = {} if repository.licence is None else {"cardData": {"license": repository.licence}}
            return _json({
                "_id": name, "id": name, "sha": commit, "private": repository.private, "tags": [], "siblings": files,
                "gated": "auto" if repository.gated else False, "downloads": 0, "likes": 0, **card,
            })  # fmt: skip

        def _tree(self, kind: str, name: str, revision: str, path: str = "") -> tuple[bytes, dict[str, str]]:
            repository = self._repository(kind, name)
            files = repository.commits[self._commit_of(repository, revision)]
            inside = {
                own: content for own, content in files.items() if own.startswith(f"{path}/" if path else "")
            }
            if path and not inside:
                raise _Answer(404, "EntryNotFound", f"{path} does not exist")
            return _json([_entry(own, content) for own, content in inside.items()])

        def _paths(self, kind: str, name: str, revision: str) -> tuple[bytes, dict[str, str]]:
            repository = self._repository(kind, name)
            files = repository.commits[self._commit_of(repository, revision)]
            asked = json.loads(self.body)["paths"]
            return _json([_entry(path, files[path]) for path in asked if path in files])

        def _preupload(self, kind: str, name: str, revision: str) -> tuple[bytes, dict[str, str]]:
            files = self._repository(kind, name, writes=True).files
            asked = [entry["path"] for entry in json.loads(self.body)["files"]]
            return _json({
                "files": [
                    {
                        "path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False,
                        "oid": _oid(path, files[path]) if path in files else None,
                    }
                    for path in asked
                ]
            })  # fmt: skip

        def _batch(self, name: str, kind: str = "model") -> tuple[bytes, dict[str, str]]:
            self._repository(kind, name, writes=True)
            objects = []
            for asked in json.loads(self.body)["objects"]:
                known = asked["oid"] in hub.blobs
                actions = {} if known else {"actions": {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}}}
                objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
            return _json({"transfer": "basic", "objects": objects})

        def _upload(self, oid: str) -> tuple[bytes, dict[str, str]]:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _Answer(400, "", "the content is not what was announced")
            hub.blobs[oid] = self.body
            return b"", {}

        def _commit(self, kind: str, name: str, revision: str) -> tuple[bytes, dict[str, str]]:
            repository, files = self._repository(kind, name, writes=True), dict[str, bytes]()
            for line in self.body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
            parent = json.loads(self.body.splitlines()[0])["value"].get("parentCommit")
            if parent is not None and parent != repository.head:
                raise _Answer(412, "", "A commit has happened since")
            commit = repository.add(files)
            return _json({"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit})

        def _file(
            self, name: str, revision: str, path: str, kind: str = "model"
        ) -> tuple[bytes, dict[str, str]]:
            repository = self._repository(kind, name)
            if repository.gated and not self._knows_token:
                raise _Answer(
                    401 if "Authorization" not in self.headers else 403, "GatedRepo", "Access is restricted"
                )
            commit = self._commit_of(repository, revision)
            content = repository.commits[commit].get(path)
            if content is None:
                raise _Answer(404, "EntryNotFound", f"{path} does not exist")
            return content, {
                "X-Repo-Commit": commit, "ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes",
            }  # fmt: skip

    return Handler


def _oid(path: str, content: bytes) -> str:
    """The name of a file's content: its SHA-256 in git-lfs, else git's own."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file of a tree."""
    large = {"lfs": {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}}
    own = (
        hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if path.endswith(LARGE)
        else _oid(path, content)
    )
    return {
        "type": "file", "path": path, "size": len(content), "oid": own, **(large if path.endswith(LARGE) else {}),
    }  # fmt: skip


def _json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which the client in this process talks to, with an empty cache."""
    from huggingface_hub import constants, hf_api

    served = Hub()
    monkeypatch.setattr(hf_api.api, "endpoint", served.url)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield served
    served.close()
