"""A small Hub on this machine: it speaks the protocol that the Hub's client speaks, and can fail.

Repositories are folders below one root, `OWNER/NAME/REVISION/...`; each file is as the Hub would
have it, small JSON as a git blob and everything else in large file storage. What it is told to do
wrong stands in `faults`, and what it was asked in `requests`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

ALWAYS = 1 << 30


@dataclass
class Fault:
    """What goes wrong with requests whose method and path hold these words, so many times.

    With a `status` it is refused with that and the Hub's error `code`; else a file is sent of
    which only `drop_after` bytes come, or whose `size` is a lie, or that is `damaged`.
    """

    path: str = ""
    method: str = ""
    times: int = ALWAYS
    status: int = 0
    code: str = ""
    drop_after: int | None = None
    size: int | None = None
    damaged: bool = False


@dataclass(frozen=True)
class Request:
    """What the client asked for; `start` is where a range begins."""

    method: str
    path: str
    start: int = 0


@dataclass
class Hub:
    """The server's state: repositories below `root`, faults, and the requests that came."""

    root: Path
    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Put files into a repository's revision; returns its commit."""
        for name, content in files.items():
            path = self.root / repository / revision / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return commit_of(repository, revision)

    def find(self, repository: str, wanted: str) -> tuple[str, Path] | None:
        """The commit and the folder of a branch or commit."""
        for folder in (self.root / repository).iterdir():
            commit = commit_of(repository, folder.name)
            if wanted in (folder.name, commit):
                return commit, folder
        return None

    def fetched(self) -> list[Request]:
        """The requests for the contents of files, in the order of their names."""
        asked = [one for one in self.requests if one.method == "GET" and "/resolve/" in one.path]
        return sorted(asked, key=lambda one: (one.path, one.start))

    def fetched_names(self) -> list[str]:
        """The names of the files whose contents were asked for."""
        return [one.path.split("/resolve/")[1].partition("/")[2] for one in self.fetched()]

    def fault(self, request: Request) -> Fault | None:
        """The first fault that a request meets; it is used up by this once."""
        with self.lock:
            for one in self.faults:
                if one.times and one.path in request.path and one.method in request.method:
                    one.times -= 1
                    return one
        return None


def commit_of(repository: str, revision: str) -> str:
    """The commit of a revision."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def checksum(name: str, content: bytes) -> str:
    """What the Hub has as a file's ETag."""
    if name.endswith(".json"):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """One answer."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        wanted = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        request = Request(self.command, path, int(wanted or 0))
        self.hub.requests.append(request)
        fault = self.hub.fault(request) or Fault(times=0)
        parts = path.removeprefix("api/models/").split("/", 3)
        repository = "/".join(parts[:2])
        if fault.status:
            self.refuse(fault.status, fault.code)
        elif not (self.hub.root / repository).is_dir():
            self.refuse(404, "RepoNotFound")
        elif parts[2:3] == ["resolve"]:
            revision, _, name = parts[3].partition("/")
            self.send_file(repository, revision, name, request.start, fault)
        else:
            self.describe(repository, *parts[2:])

    def describe(self, repository: str, what: str = "revision", revision: str = "main") -> None:
        """A revision's commit with its files, or the list of these alone."""
        found = self.hub.find(repository, revision)
        if found is None:
            self.refuse(404, "RevisionNotFound")
            return
        commit, folder = found
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = [entry(str(path.relative_to(folder)), path.read_bytes()) for path in paths]
        siblings = [sibling(one) for one in entries]
        info = {"id": repository, "sha": commit, "siblings": siblings}
        self.send(json.dumps(entries if what == "tree" else info).encode())

    def send_file(
        self, repository: str, revision: str, name: str, start: int, fault: Fault
    ) -> None:
        found = self.hub.find(repository, revision)
        if found is None or not (found[1] / name).is_file():
            self.refuse(404, "EntryNotFound" if found else "RevisionNotFound")
            return
        content = (found[1] / name).read_bytes()
        headers = {
            "ETag": f'"{checksum(name, content)}"',
            "X-Repo-Commit": found[0],
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        content = content[start : fault.size]
        self.send(content, 206 if start else 200, headers, fault.drop_after)

    def refuse(self, status: int, code: str) -> None:
        self.send(b"{}", status, {"X-Error-Code": code})

    def send(
        self,
        body: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        drop_after: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:drop_after])
        if drop_after is not None:
            self.close_connection = True


def entry(name: str, content: bytes) -> dict[str, object]:
    """A file in the list of a tree."""
    digest = checksum(name, content)
    facts: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": digest}
    if not name.endswith(".json"):
        facts["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return facts


def sibling(facts: dict[str, object]) -> dict[str, object]:
    """The same file as it stands beside the commit."""
    lfs = facts.get("lfs")
    large = {"lfs": {**lfs, "sha256": lfs["oid"]}} if isinstance(lfs, dict) else {}
    return {"rfilename": facts["path"], "size": facts["size"], "blobId": facts["oid"], **large}


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """A hub on a free port of this machine, for as long as the block lasts."""
    hub = Hub(root)
    handler = type("AnswerOfHub", (Answer,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
