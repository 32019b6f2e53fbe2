"""The hub of ``hub_server`` with the routes of an upload: create a repository, send large files, commit.

A token is needed for each. Large files go the way of Git LFS: a batch that names them, a PUT to the storage, and a
commit that names them by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server import LARGE, Hub, Repo, _Handler


class _UploadHandler(_Handler):
    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path).strip("/")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif token not in self.server.hub.tokens:
            self.refuse(401, "Unauthorized", "Invalid username or password.")
        elif path == "api/repos/create":
            self.create(json.loads(self.body))
        elif found := re.fullmatch(r"api/models/(.+?)/preupload/([^/]+)", path):
            self.preupload(*found.groups())
        elif found := re.fullmatch(r"(.+?)\.git/info/lfs/objects/batch", path):
            self.batch()
        elif found := re.fullmatch(r"api/models/(.+?)/commit/([^/]+)", path):
            self.receive(*found.groups())
        else:
            self.refuse(404, "NotFound", "no such route")

    def do_PUT(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.hub.large[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, b"", {})

    def create(self, wanted: dict) -> None:
        repo_id = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        if repo_id.startswith("forbidden/"):
            self.refuse(403, "Forbidden", "You don't have the rights to create a model under this namespace")
            return
        hub = self.server.hub
        known = ("models", repo_id) in hub.repos
        hub.repos.setdefault(("models", repo_id), Repo())
        hub.created.setdefault(repo_id, wanted)
        body = json.dumps({"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": repo_id}).encode()
        self.answer(409 if known else 200, body, {"Content-Type": "application/json"})

    def preupload(self, repo_id: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
            for f in files
        ]
        self.json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def batch(self) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.hub.storage_url}/upload/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def receive(self, repo_id: str, revision: str) -> None:
        hub = self.server.hub
        repo = hub.repos["models", repo_id]
        base = repo.find(revision)
        files = dict(repo.commits[base]) if base else {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        pull = bool(parse_qs(urlsplit(self.path).query).get("create_pr"))
        branch = f"refs/pr/{len(repo.commits)}" if pull else revision
        sha = hub.commit(repo_id, files, branch)
        answer = {"commitUrl": f"{hub.url}/{repo_id}/commit/{sha}", "commitOid": sha}
        if pull:
            answer["pullRequestUrl"] = f"{hub.url}/{repo_id}/discussions/{len(repo.commits) - 1}"
        self.json(answer)


class UploadHub(Hub):
    """A hub that can be written to.

    Attributes:
        large: Hash to the bytes of every large file sent.
        created: Id to what was asked of each repository that was to be made.
    """

    handler = _UploadHandler

    def __init__(self):
        self.large: dict[str, bytes] = {}
        self.created: dict[str, dict] = {}
        super().__init__()
