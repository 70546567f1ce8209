"""A stand-in for the Hugging Face hub on this machine: create, upload (commits and LFS) and download, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


class Hub:
    """The repositories by name: files by name; and the uploaded objects by their SHA-256."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.url = ""

    def revision(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[name].items())).encode()).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that listens on loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def reply(self, status: int, value=None, content: bytes | None = None, **headers: str) -> None:
        body = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.reply(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if (repo := self.hub.repos.get(match[1])) is None:
                return self.missing("RepoNotFound")
            if match[2] not in (None, "main", revision := self.hub.revision(match[1])):
                return self.missing("RevisionNotFound")
            siblings = [{"rfilename": name} for name in repo]
            return self.reply(200, {"id": match[1], "sha": revision, "siblings": siblings})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.hub.repos.get(match[1], {}).get(match[3])
            if content is None:
                return self.missing("EntryNotFound")
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.reply(200, content=content, ETag=etag, X_Repo_Commit=self.hub.revision(match[1]))
        return self.missing("RepoNotFound")

    def do_PUT(self) -> None:
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.hub.objects[self.path.rpartition("/")[2]] = content
        self.reply(200)

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(403, {"error": "Forbidden"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"warnings": [], "errors": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.hub.repos else 200
            self.hub.repos.setdefault(name, {})
            return self.reply(status, {"url": f"{self.hub.url}/{name}"})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            modes = {True: "lfs", False: "regular"}
            files = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False} for p in files]
            return self.reply(200, {"files": told})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            told = [
                each | {"actions": {"upload": {"href": f"{self.hub.url}/objects/{each['oid']}"}}} for each in objects
            ]
            return self.reply(200, {"transfer": "basic", "objects": told})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            repo = self.hub.repos[match[1]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repo[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo[value["path"]] = self.hub.objects[value["oid"]]
            commit = self.hub.revision(match[1])
            told = {"commitUrl": f"{self.hub.url}/{match[1]}/commit/{commit}", "commitOid": commit, "success": True}
            return self.reply(200, told)
        return self.missing("RepoNotFound")
