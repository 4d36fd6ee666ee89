"""A Hugging Face hub in this process: of its HTTP interface what huggingface_hub needs to load and to commit.

Every file is taken as a small one, which the hub keeps itself; large ones it hands on to another store.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Hub:
  """Repositories by name, and what was asked of them.

  Attributes:
    repos: 'OWNER/NAME' -> {'files': {path: bytes}, 'private': bool, 'gated': bool, 'branches': names}.
    requests: 'METHOD path' of each request.
    broken: paths of files that are cut off in the middle.
    down: status with which everything is answered; 0 for none.
    url: its address.
  """

  token = "hf_right"

  def __init__(self):
    self.repos, self.requests, self.broken, self.down, self.url = {}, [], set(), 0, ""

  def add(self, name, files, *, private=False, gated=False, branches=("main",)):
    self.repos[name] = {"files": dict(files), "private": private, "gated": gated, "branches": set(branches)}

  def commit(self, name):
    """The hash of the newest commit."""
    return hashlib.sha1(repr(sorted(self.repos[name]["files"].items())).encode()).hexdigest()


@contextlib.contextmanager
def serve():
  """A Hub that answers at its `url` while the context lasts."""
  hub = Hub()

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
      pass

    def answer(self, status, body=b"", **headers):
      self.send_response(status)
      if not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers["Content_Type"] = "application/json"
      for key, value in {"Content_Length": str(len(body)), **headers}.items():
        self.send_header(key.replace("_", "-"), value)
      self.end_headers()
      if self.command != "HEAD":
        self.wfile.write(body)

    def refuse(self, status, code, text):
      self.answer(status, {"error": text}, X_Error_Code=code, X_Error_Message=text)

    def allowed(self, name):
      """Whether the repository is there for who asks; answers otherwise."""
      repo, known = hub.repos.get(name), self.headers.get("Authorization") == f"Bearer {hub.token}"
      if repo is None or (repo["private"] and not known):
        self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
      elif repo["gated"] and not known:
        self.refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
      else:
        return True
      return False

    def do_GET(self):
      path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
      hub.requests.append(f"{self.command} {path}")
      if hub.down:
        return self.answer(hub.down)
      if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
        if self.allowed(match[1]):
          self.answer(200, {"id": match[1], "modelId": match[1], "private": hub.repos[match[1]]["private"],
                            "sha": hub.commit(match[1]), "tags": [], "downloads": 0, "likes": 0,
                            "siblings": [{"rfilename": name} for name in hub.repos[match[1]]["files"]]})
      elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
        if self.allowed(match[1]):
          self.answer(200, [
              {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
              for name, body in hub.repos[match[1]]["files"].items()])
      elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", path):
        self.resolve(*match.groups())
      else:
        self.answer(404)

    do_HEAD = do_GET

    def resolve(self, name, revision, file):
      if not self.allowed(name):
        return
      commit = hub.commit(name)
      if revision not in hub.repos[name]["branches"] | {commit}:
        return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
      body = hub.repos[name]["files"].get(file)
      if body is None:
        return self.answer(
            404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit)
      headers = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
      if file not in hub.broken or self.command == "HEAD":
        return self.answer(200, body, **headers)
      self.answer(200, body[: len(body) // 2], Content_Length=str(len(body)), **headers)
      self.close_connection = True

    def do_POST(self):
      path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
      hub.requests.append(f"POST {path}")
      sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
      if path == "/api/validate-yaml":
        return self.answer(200, {"errors": [], "warnings": []})
      if self.headers.get("Authorization") != f"Bearer {hub.token}":
        return self.refuse(401, "", "Invalid username or password.")
      if path == "/api/repos/create":
        asked = json.loads(sent)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in hub.repos:
          return self.answer(409, {"error": "You already created this model repo", "name": name, "id": name,
                                   "url": f"{hub.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        hub.add(name, {}, private=bool(private))
        return self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
      if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
        return self.answer(200, {"files": [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for file in json.loads(sent)["files"]]})
      if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
        for line in map(json.loads, sent.splitlines()):
          if line["key"] == "file":
            hub.repos[match[1]]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hub.commit(match[1])
        return self.answer(200, {"success": True, "commitOid": commit, "pullRequestUrl": None,
                                 "commitUrl": f"{hub.url}/{match[1]}/commit/{commit}"})
      self.answer(404)

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  hub.url = f"http://127.0.0.1:{server.server_port}"
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
