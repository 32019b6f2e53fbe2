"""A model hub on 127.0.0.1: the routes that huggingface_hub asks for to read a repository, over real HTTP.

Repositories have commits and branches; weight files are served as the hub serves large files, by a redirect.
Reading only: a write would be a route that calls ``Hub.commit``.

    with Hub() as hub:
        first = hub.commit("someone/model", folder)
        hub.environment(cache)  # for a process that loads from it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet")
_KINDS = {"": "models", "datasets": "datasets", "spaces": "spaces"}


@dataclass
class Repo:
    """A repository: its commits, each a whole tree, and the branches that point at them.

    Args:
        gated: Readable only with one of the hub's tokens.
        broken: Path to the number of bytes after which its transfer breaks off.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    broken: dict[str, int] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, a commit or the beginning of one."""
        if revision in self.branches:
            return self.branches[revision]
        return next((sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)), None)


class Hub:
    """A hub that runs from its making to the end of its context.

    Attributes:
        repos: (kind, id) to the repository; kind is models, datasets or spaces.
        log: (method, path, status) of every request so far.
        tokens: Those that open gated repositories.
    """

    handler: type | None = None  # of a hub with more routes

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[tuple[str, str, int]] = []
        self.tokens = {"hf_of_a_friend"}
        # Large files lie on another host than the hub, and a client sends its token to the hub alone.
        self.ports, self.servers = [0, 0], []
        self.start()
        self.url, self.storage_url = (f"http://127.0.0.1:{port}" for port in self.ports)

    def start(self) -> None:
        self.servers = [
            ThreadingHTTPServer(("127.0.0.1", port), self.handler or _Handler) for port in self.ports
        ]
        self.ports = [server.server_port for server in self.servers]
        for server in self.servers:
            server.daemon_threads, server.hub = True, self
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.servers = []

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @contextlib.contextmanager
    def away(self):
        """Take no connections for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def commit(
        self,
        repo_id: str,
        content: str | Path | dict[str, bytes],
        branch: str = "main",
        kind: str = "models",
        **settings,
    ) -> str:
        """Make a commit of a folder's files, or of files as bytes, and return its hash."""
        if not isinstance(content, dict):
            folder = Path(content)
            content = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        repo = self.repos.setdefault((kind, repo_id), Repo())
        for name, value in settings.items():
            setattr(repo, name, value)
        digest = hashlib.sha1(f"{repo_id} {branch} {len(repo.commits)}".encode())
        for path, data in content.items():
            digest.update(path.encode() + data)
        sha = digest.hexdigest()
        repo.commits[sha], repo.branches[branch] = content, sha
        return sha

    def environment(self, cache: str | Path, **more: str) -> dict[str, str]:
        """Return the environment of a process that knows this hub alone, its cache in the folder ``cache``."""
        dropped = ("HF_", "TRANSFORMERS_OFFLINE", "HUGGINGFACE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return {**kept, **quiet, "HF_ENDPOINT": self.url, "HF_HOME": str(cache), **more}

    def requests(self, path: str = "") -> int:
        """Return how many requests named ``path`` so far."""
        return sum(path in asked for _, asked, _ in self.log)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.route()

    def do_HEAD(self):
        self.route()

    def log_message(self, *_):
        pass

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if found := re.fullmatch(r"api/(models|datasets|spaces)/(.+?)/tree/([^/]+)(?:/(.*))?", path):
            self.tree(*found.groups())
        elif found := re.fullmatch(r"api/(models|datasets|spaces)/(.+?)(?:/revision/(.+))?", path):
            self.info(*found.groups())
        elif found := re.fullmatch(r"(?:(datasets|spaces)/)?(.+?)/resolve/([^/]+)/(.+)", path):
            kind, *rest = found.groups()
            self.file(_KINDS[kind or ""], *rest)
        elif found := re.fullmatch(r"storage/(models|datasets|spaces)/(.+?)/([0-9a-f]{40})/(.+)", path):
            kind, repo_id, sha, name = found.groups()
            repo = self.server.hub.repos[kind, repo_id]
            self.content(repo.commits[sha][name], {}, repo.broken.get(name))
        else:
            self.refuse(404, "NotFound", "no such route")

    def find(self, kind: str, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        """Return repository and commit, or answer why they are not to be had."""
        repo = self.server.hub.repos.get((kind, repo_id))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None:
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and token not in self.server.hub.tokens:
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        elif (sha := repo.find(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo, sha
        return None

    def info(self, kind: str, repo_id: str, revision: str | None) -> None:
        # The hub tells everybody that a gated repository exists, and what it holds.
        repo = self.server.hub.repos.get((kind, repo_id))
        sha = repo.find(revision or "main") if repo is not None and repo.gated else None
        found = (repo, sha) if sha else self.find(kind, repo_id, revision or "main")
        if found:
            repo, sha = found
            files = [{"rfilename": name} for name in repo.commits[sha]]
            gated = "auto" if repo.gated else False
            values = {
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": False,
                "gated": gated,
                "tags": [],
            }
            self.json({**values, "siblings": files})

    def tree(self, kind: str, repo_id: str, revision: str, folder: str | None) -> None:
        if not (found := self.find(kind, repo_id, revision)):
            return
        repo, sha = found
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        files = {name: data for name, data in repo.commits[sha].items() if name.startswith(prefix)}
        if prefix and not files:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return
        folders = []
        if "recursive=false" in urlsplit(self.path).query:  # the folder's own files and folders
            inner = {
                name.removeprefix(prefix).split("/")[0] for name in files if "/" in name.removeprefix(prefix)
            }
            folders = [
                {
                    "type": "directory",
                    "path": prefix + name,
                    "size": 0,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name in sorted(inner)
            ]
            files = {name: data for name, data in files.items() if "/" not in name.removeprefix(prefix)}
        self.json([*folders, *(self.entry(name, data) for name, data in files.items())])

    @staticmethod
    def entry(name: str, data: bytes) -> dict:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
        return {"type": "file", "path": name, "size": len(data), "oid": blob} | (
            large if name.endswith(LARGE) else {}
        )

    def file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        if not (found := self.find(kind, repo_id, revision)):
            return
        repo, sha = found
        data = repo.commits[sha].get(name)
        commit = {"X-Repo-Commit": sha}
        if data is None:
            self.refuse(404, "EntryNotFound", "Entry not found", commit)
            return
        entry = self.entry(name, data)
        if "lfs" in entry:  # the bytes come from elsewhere; this answer says what they will be
            linked = {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
            to = {"Location": f"{self.server.hub.storage_url}/storage/{kind}/{repo_id}/{sha}/{name}"}
            self.answer(302, b"", {**commit, **linked, **to})
        else:
            self.content(data, {**commit, "ETag": f'"{entry["oid"]}"'}, repo.broken.get(name))

    def content(self, data: bytes, headers: dict[str, str], broken: int | None) -> None:
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self.answer(200, data, headers, broken)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.answer(206, data[start : end + 1], headers, None if broken is None else max(0, broken - start))

    def json(self, value) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        errors = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self.answer(status, body, {**errors, **(headers or {})})

    def answer(self, status: int, body: bytes, headers: dict[str, str], broken: int | None = None) -> None:
        self.server.hub.log.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:broken])
            if broken is not None:
                self.close_connection = True
