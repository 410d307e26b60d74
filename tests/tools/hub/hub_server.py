"""A local server for the parts of the Hub's protocol that uploads and downloads use, over HTTP and git LFS.

It keeps repositories in memory, requires a token, and drops connections when told to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from emma.tools.hub.licenses import known_licenses

TOKEN = "hf_" + "testtoken" * 3


@dataclass
class Repository:
    private: bool
    kind: str = "model"
    gated: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*"}})
    large: set[str] = field(default_factory=set)
    commits: int = 0

    def commit(self, branch: str) -> str:
        """The commit that a branch stands for."""
        return f"{list(self.branches).index(branch):02x}{self.commits:038x}"

    def files(self, revision: str) -> dict[str, bytes]:
        """Files of a branch or commit."""
        return next(
            files for branch, files in self.branches.items() if revision in (branch, self.commit(branch))
        )


@dataclass
class Hub:
    """The server's state. It drops the first `drops` transfers of large files halfway, and answers `refusals`
    requests with 503. It sends files at `rate` bytes a second (0: at once), and those in `corrupt` with a wrong byte.
    `trouble` is what every request meets: a status, "page" (a login page in place of an answer), "silence" or "hang up"."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    drops: int = 0
    refusals: int = 0
    received: int = 0
    sent: int = 0
    rate: int = 0
    trouble: int | str = 0
    awake: threading.Event = field(default_factory=threading.Event)
    corrupt: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """Whether a fault of that kind is still to come."""
        with self.lock:
            due: int = getattr(self, name)
            setattr(self, name, max(0, due - 1))
            return due > 0


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def metadata_errors(content: str, kind: str) -> list[str]:
    """Violations of the Hub's documented rules for card metadata."""
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["no metadata"]

    def listed(key: str) -> list[Any]:
        found = data.get(key) or []
        return found if isinstance(found, list) else [found]

    errors = [f'"{key}" is required' for key in ("license",) if not data.get(key)]
    errors += [
        f'"license" must not be {name!r}' for name in listed("license") if name not in known_licenses()
    ]
    errors += [
        f'"language" must be ISO 639, not {code!r}'
        for code in listed("language")
        if not isinstance(code, str) or not re.fullmatch("[a-z]{2,3}", code)
    ]
    strings = (
        "tags",
        "base_model",
        "datasets",
        "library_name",
        "pipeline_tag",
        "pretty_name",
        "size_categories",
    )
    for key in (*strings, "task_categories", "multilinguality", "license_name", "license_link"):
        if not all(isinstance(item, str) and item for item in listed(key)):
            errors.append(f'"{key}" must be text')
    if "license_name" in data and not re.fullmatch("[a-z0-9.-]+", str(data["license_name"])):
        errors.append('"license_name" must be lower-case letters, digits, dots and dashes')
    for base in listed("base_model"):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
            errors.append(f'"base_model" must be a name on the Hub, not {base!r}')
    for model in data.get("model-index") or []:
        if not isinstance(model, dict) or not model.get("name") or not model.get("results"):
            errors.append('"model-index" needs "name" and "results"')
            continue
        for result in model["results"]:
            if not result.get("task", {}).get("type"):
                errors.append('a result needs "task.type"')
            dataset = result.get("dataset", {})
            errors += [f'a result needs "dataset.{key}"' for key in ("type", "name") if not dataset.get(key)]
            for metric in result.get("metrics") or [{}]:
                if not metric.get("type") or not isinstance(metric.get("value"), int | float):
                    errors.append('a result needs "metrics" with "type" and a number as "value"')
    names = [entry.get("config_name") for entry in data.get("configs") or []]
    if kind == "dataset" and (len(set(names)) != len(names) or not all(names)):
        errors.append('"configs" needs a "config_name" of its own for each')
    if any(re.search(r"[<>:/\\|?*]", str(name)) for name in names):
        errors.append('"config_name" holds a character that no file name may')
    if sum(bool(entry.get("default")) for entry in data.get("configs") or []) > 1:
        errors.append('"configs" has two defaults')
    return errors


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self, method: str) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{method} {path}")
        if self.hub.trouble:
            self._trouble(self.hub.trouble)
            return
        open_to_all = path.startswith("/lfs/") or path == "/api/validate-yaml"
        if not open_to_all and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._body()
            self._answer({"error": "Invalid username or password."}, 401)
            return
        for pattern, route in ROUTES:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                route(self, **{key: unquote(value) for key, value in match.groupdict().items()})
                return
        self._body()
        self._answer({"error": f"no such route: {method} {path}"}, 404)

    def _trouble(self, kind: int | str) -> None:
        if kind == "silence":
            self.hub.awake.wait(30)
        self.close_connection = True
        if isinstance(kind, int):
            self._answer({"error": "so it is"}, kind)
        elif kind == "page":
            body = b"<html>Log in to the network of this hotel</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def end_headers(self) -> None:
        # Said, or the client sends its next request down a connection that ends meanwhile.
        if self.close_connection:
            self.send_header("Connection", "close")
        super().end_headers()

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def create(self) -> None:
        value = json.loads(self._body())
        name = f"{value['organization']}/{value['name']}" if value.get("organization") else value["name"]
        kind = value.get("type", "model")
        url = {"url": f"http://{self.headers['Host']}/{name}", "name": name}
        if name in self.hub.repositories:
            self._answer({"error": f"You already created this {kind} repo", **url}, 409)
            return
        private = value.get("visibility", "private" if value.get("private") else "public") == "private"
        self.hub.repositories[name] = Repository(private, kind)
        self._answer(url)

    def validate(self) -> None:
        value = json.loads(self._body())
        errors = [{"message": message} for message in metadata_errors(value["content"], value["repoType"])]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def branch(self, repo: str, branch: str) -> None:
        self._body()
        branches = self.hub.repositories[repo].branches
        if branch in branches:
            self._answer({"error": f"Reference already exists: {branch}"}, 409)
            return
        branches[branch] = dict(branches["main"])
        self._answer({})

    def preupload(self, repo: str, branch: str) -> None:
        value = json.loads(self._body())
        if self.hub.take("refusals"):
            self._answer({"error": "over capacity"}, 503)
            return
        held = self.hub.repositories[repo].branches[branch]
        large = self.hub.repositories[repo].large
        files = []
        for file in value["files"]:
            name = file["path"]
            as_lfs = name.endswith((".safetensors", ".parquet"))
            row = {"path": name, "uploadMode": "lfs" if as_lfs else "regular", "shouldIgnore": False}
            if name in held:
                content = held[name]
                row["oid"] = hashlib.sha256(content).hexdigest() if name in large else git_blob(content)
            files.append(row)
        self._answer({"files": files})

    def batch(self, repo: str) -> None:
        value = json.loads(self._body())
        objects = []
        for wanted in value["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"http://{self.headers['Host']}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self._answer({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if self.hub.take("drops"):
            length = int(self.headers["Content-Length"])
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self._body()
        if hashlib.sha256(body).hexdigest() != oid:
            self._answer({"error": "hash"}, 400)
            return
        self.hub.received += len(body)
        self.hub.objects[oid] = body
        self._answer({})

    def commit(self, repo: str, branch: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        repository = self.hub.repositories[repo]
        files = repository.branches[branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                repository.large.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits += 1
        oid = f"{repository.commits:040x}"
        self._answer(
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{oid}",
            }
        )

    def tree(self, repo: str, branch: str) -> None:
        repository = self.hub.repositories[repo]
        rows = []
        for name, content in sorted(repository.files(branch).items()):
            row: dict[str, Any] = {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": git_blob(content),
            }
            if name in repository.large:
                oid = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            rows.append(row)
        self._answer(rows)

    def info(self, repo: str, branch: str = "main") -> None:
        if repo not in self.hub.repositories or branch not in self.hub.repositories[repo].branches:
            self._answer({"error": "Repository not found"}, 404)
            return
        repository = self.hub.repositories[repo]
        names = [{"rfilename": name} for name in repository.branches[branch]]
        answer = {"id": repo, "sha": repository.commit(branch), "siblings": names}
        self._answer({**answer, "gated": "auto" if repository.gated else False})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        """A file, or the part that the client lacks."""
        repository = self.hub.repositories[repo]
        content = repository.files(revision).get(path)
        if content is None:
            self._answer({"error": "Entry not found"}, 404)
            return
        if repository.gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this dataset is restricted")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        large = path in repository.large
        etag = hashlib.sha256(content).hexdigest() if large else git_blob(content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", revision)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if path in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        stop = len(content)
        if self.hub.take("drops"):
            stop = (start + stop) // 2
        for first in range(start, stop, 1 << 16):
            piece = content[first : min(first + (1 << 16), stop)]
            if self.hub.rate:
                time.sleep(len(piece) / self.hub.rate)
            try:
                self.wfile.write(piece)
            except OSError:  # the client was killed
                self.close_connection = True
                return
            self.hub.sent += len(piece)
        if stop < len(content):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


_KIND = "(?:models|datasets)"
_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/validate-yaml", Handler.validate),
    (r"POST /api/repos/create", Handler.create),
    (rf"POST /api/{_KIND}/{_REPO}/branch/(?P<branch>[^/]+)", Handler.branch),
    (rf"POST /api/{_KIND}/{_REPO}/preupload/(?P<branch>[^/]+)", Handler.preupload),
    (rf"POST /(?:datasets/)?{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]+)", Handler.store),
    (rf"POST /api/{_KIND}/{_REPO}/commit/(?P<branch>[^/]+)", Handler.commit),
    (rf"GET /api/{_KIND}/{_REPO}/tree/(?P<branch>[^/]+)", Handler.tree),
    (rf"GET /api/{_KIND}/{_REPO}/revision/(?P<branch>[^/]+)", Handler.info),
    (rf"GET /api/{_KIND}/{_REPO}", Handler.info),
    (rf"(?:GET|HEAD) /datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


def serve(hub: Hub) -> tuple[ThreadingHTTPServer, str]:
    """Starts the server on a free port of this machine; returns it and its address."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"
