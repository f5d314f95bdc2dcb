"""A web server for tests: HTTPS and plain HTTP on loopback, for whatever names its certificate has.

    tls_origin.py DIR [HTTPS_PORT HTTP_PORT [ADDRESS]]

DIR holds cert.pem and key.pem. `DIR/ports` gets both ports, `DIR/log` a line for each accepted connection
(`accept https`) and for each request (`https allow.test GET /path`).

    /redir          302 to https://evil.test/stolen
    /bytes/N        N bytes
    /hold           a byte now and then, until DIR/release exists
    /files/...      what is below DIR/files
    /git/...        repositories below DIR/git, by git's own CGI program
    anything else   "reached NAME"

`DIR/faults` (JSON) says what /git/... does wrong: see `upstream.rs`.
"""

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DIR = Path(sys.argv[1]).resolve()
PORTS = [int(port) for port in sys.argv[2:4]] or [0, 0]
ADDRESS = sys.argv[4] if len(sys.argv) > 4 else "127.0.0.1"
LONGEST_HOLD = 100


def note(line):
    with (DIR / "log").open("a") as file:
        file.write(line + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        scheme = self.server.scheme
        host = self.headers.get("Host", "-")
        scheme_of_auth = self.headers.get("Authorization", "").partition(" ")[0]
        note(f"{scheme} {host} {self.command} {self.path}" + (f" auth={scheme_of_auth}" if scheme_of_auth else ""))
        path = self.path.partition("?")[0]
        body = self.body()
        if path == "/redir":
            return self.reply(302, b"", Location="https://evil.test/stolen")
        if path.startswith("/bytes/"):
            return self.reply(200, b"x" * int(path.removeprefix("/bytes/")))
        if path == "/hold":
            return self.hold()
        if path.startswith("/files/"):
            return self.file(path.removeprefix("/files/"))
        if path.startswith("/git/"):
            return self.fault(path) or self.git(path.removeprefix("/git"), body)
        return self.reply(200, f"reached {host.partition(':')[0]}\n".encode())

    do_GET = do_POST = do_HEAD = answer

    def fault(self, path):
        """Does what the faults say; true if that was the answer."""
        self.cut = None
        try:
            faults = json.loads((DIR / "faults").read_text())
        except FileNotFoundError:
            return False
        if faults["only"] and faults["only"] not in self.path:
            return False
        time.sleep(faults["delay_ms"] / 1000)
        if faults["auth"]:
            right = "Basic " + base64.b64encode(faults["auth"].encode()).decode()
            if self.headers.get("Authorization") != right:
                self.reply(401, b"who?\n", WWW_Authenticate='Basic realm="test"')
                return True
        more = {} if faults["retry_after"] is None else {"Retry_After": str(faults["retry_after"])}
        if faults["redirect"]:
            for tail in ["/info/refs", "/git-upload-pack"]:
                if path.endswith(tail):
                    query = self.path.partition("?")[2]
                    self.reply(301, b"", Location=faults["redirect"] + tail + (f"?{query}" if query else ""))
                    return True
        if faults["status"]:
            self.reply(faults["status"], b"no\n", **more)
            return True
        self.cut = faults["cut"]
        return False

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = getattr(self, "cut", None)
        if cut is not None and cut < len(body):
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.command != "HEAD":
            self.wfile.write(body)

    def hold(self):
        # Chunked: who gets a part of it can tell that it is one.
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nheld\n\r\n")
        end = time.monotonic() + LONGEST_HOLD
        while not (DIR / "release").exists() and time.monotonic() < end:
            self.wfile.write(b"1\r\n.\r\n")
            time.sleep(0.05)
        self.wfile.write(b"9\r\nreleased\n\r\n0\r\n\r\n")

    def file(self, name):
        file = (DIR / "files" / name).resolve()
        if file.is_dir():
            file = file / "index.html"
        if not file.is_file() or DIR / "files" not in file.parents:
            return self.reply(404, b"no such file\n")
        kind = {".html": "text/html", ".json": "application/json"}.get(file.suffix, "application/octet-stream")
        return self.reply(200, file.read_bytes(), Content_Type=kind)

    def git(self, path, body):
        # The smallest environment that CGI and git want.
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(DIR / "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": path,
            "QUERY_STRING": self.path.partition("?")[2],
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        out = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=False).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        headers.pop("Content-Length", None)
        self.reply(status, rest, **headers)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port, tls):
        self.tls = tls
        self.scheme = "https" if tls else "http"
        super().__init__((ADDRESS, port), Handler)

    def finish_request(self, request, client_address):
        note(f"accept {self.scheme}")
        request.settimeout(LONGEST_HOLD)
        try:
            if self.tls:
                request = self.tls.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)
        except OSError:
            pass


def end_with(parent):
    """A test that was killed cannot end its web server."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main():
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(DIR / "cert.pem", DIR / "key.pem")
    servers = [Server(PORTS[0], tls), Server(PORTS[1], None)]
    (DIR / "log").touch()
    (DIR / "ports.new").write_text(" ".join(str(server.server_address[1]) for server in servers))
    (DIR / "ports.new").rename(DIR / "ports")
    threading.Thread(target=servers[1].serve_forever, daemon=True).start()
    servers[0].serve_forever()


main()
