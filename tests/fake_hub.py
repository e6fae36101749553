"""A server on this machine that speaks as much of the Hugging Face Hub as uploads and downloads of
small files need."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by commit, and the headers that were sent."""

    def __init__(self):
        self.commits, self.latest, self.tokens = {}, {}, set()

    def commit(self, repo, files):
        whole = {**self.commits.get(self.latest.get(repo), {}), **files}
        name = hashlib.sha1(repr(sorted(whole.items())).encode()).hexdigest()
        self.commits[name], self.latest[repo] = whole, name
        return name


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body, status=200, headers=()):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(data)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def body(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self):
            hub.tokens.add(self.headers.get("Authorization"))
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo = "/".join(parts[2:4])
                wanted = parts[5] if len(parts) > 5 else "main"
                sha = wanted if wanted in hub.commits else hub.latest.get(repo)
                if sha is None or wanted not in (*hub.commits, "main"):
                    return self.answer({"error": "no"}, 404, [("X-Error-Code", "RevisionNotFound")])
                files = hub.commits[sha]
                if "tree" in parts:
                    return self.answer(
                        [
                            {"type": "file", "path": n, "size": len(d), "oid": sha1(d)}
                            for n, d in files.items()
                        ]
                    )
                listed = [{"rfilename": name} for name in files]
                return self.answer({"id": repo, "sha": sha, "siblings": listed})
            sha, name = parts[3], "/".join(parts[4:])
            data = hub.commits[sha].get(name)
            if data is None:
                return self.answer({"error": "no"}, 404, [("X-Error-Code", "EntryNotFound")])
            return self.answer(data, headers=[("ETag", f'"{sha1(data)}"'), ("X-Repo-Commit", sha)])

        do_HEAD = do_GET

        def do_POST(self):
            hub.tokens.add(self.headers.get("Authorization"))
            path, body = urlsplit(self.path).path, self.body()
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
                hub.commit(repo, {})
                return self.answer({"url": f"http://{self.headers['Host']}/{repo}"})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if "preupload" in parts:
                files = json.loads(body)["files"]
                told = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                return self.answer({"files": told})
            if "commit" in parts:
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                repo = "/".join(parts[2:4])
                sha = hub.commit(repo, files)
                url = f"http://{self.headers['Host']}/{repo}/commit/{sha}"
                return self.answer({"success": True, "commitUrl": url, "commitOid": sha})
            return self.answer({"error": path}, 404)

    return Handler


def sha1(data):
    return hashlib.sha1(data).hexdigest()


@contextmanager
def running():
    """Yield the server's address and what it holds."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
