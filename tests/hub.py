"""A stand-in for the Hugging Face hub: the part of its HTTP API that downloads use, on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

Files = dict[str, bytes]


class Hub:
    """Repositories by name: the files of every revision, and the author of every pull request.

    Attributes:
      repositories: name -> revision ("main", "refs/pr/1") -> files.
      authors: (name, number of a pull request) -> author.
      requests: the paths of all downloads, in order.
      gated: names whose files need an accepted license.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.authors: dict[tuple[str, int], str] = {}
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.url = ""

    def find(self, name: str, revision: str) -> tuple[str, Files]:
        """Returns the commit and the files of a branch or commit."""
        for branch, files in self.repositories[name].items():
            commit = hashlib.sha1(f"{name} {branch}".encode()).hexdigest()
            if revision in (branch, commit):
                return commit, files
        raise LookupError(revision)

    def api(self, name: str, what: str, rest: str) -> object:
        """Returns the JSON answer about a repository."""
        if what == "refs":
            refs = [
                {"name": ref, "ref": ref, "targetCommit": self.find(name, ref)[0]} for ref in self.repositories[name]
            ]
            pulls = [ref for ref in refs if ref["ref"].startswith("refs/pr/")]
            converts = [ref for ref in refs if ref["ref"].startswith("refs/convert/")]
            return {"branches": [], "tags": [], "converts": converts, "pullRequests": pulls}
        if what == "discussions":
            found = [number for (repository, number) in self.authors if repository == name]
            return {"count": len(found), "start": 0, "discussions": [self._discussion(name, each) for each in found]}
        commit, files = self.find(name, rest or "main")
        if what == "tree":
            return [{"type": "file", "path": path, "size": len(files[path]), "oid": commit} for path in files]
        return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}

    def _discussion(self, name: str, number: int) -> dict[str, object]:
        fields = {"title": "", "createdAt": "2023-03-28T13:38:46.000Z", "status": "open", "isPullRequest": True}
        author = {"name": self.authors[name, number]}
        return fields | {"num": number, "author": author, "repo": {"name": name, "type": "model"}}


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path.strip("/")
            parts = [urllib.parse.unquote(part) for part in path.split("/")]
            error = "RepoNotFound"
            try:
                if parts[:2] == ["api", "models"]:
                    name, (what, *rest) = "/".join(parts[2:4]), [*parts[4:], ""]
                    self.answer(json.dumps(hub.api(name, what, "/".join(filter(None, rest)))).encode())
                    return
                name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
                error = "GatedRepo" if name in hub.gated else "RepoNotFound"
                commit, files = hub.find("" if name in hub.gated else name, revision)
                error = "EntryNotFound"
                hub.requests.append(f"{name}/{file}") if self.command == "GET" else None
                etag = hashlib.sha1(files[file]).hexdigest()
                self.answer(files[file], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})
            except KeyError:
                self.answer(b"", {"X-Error-Code": error}, 403 if error == "GatedRepo" else 404)
            except LookupError:
                self.answer(b"", {"X-Error-Code": "RevisionNotFound"}, 404)

        do_HEAD = do_GET

        def answer(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve(monkeypatch: pytest.MonkeyPatch, cache: object) -> Iterator[Hub]:
    """Yields an empty hub that this process's client uses, with an empty cache."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
