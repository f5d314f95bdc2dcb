"""What probes of the network are made of. Runs inside; the repository of the test has it as probe.py."""

import os
import socket
import ssl
import sys
from urllib.parse import urlsplit

PROXY = urlsplit(os.environ.get("https_proxy", "http://127.0.0.1:3128"))


def dial():
    peer = socket.create_connection((PROXY.hostname, PROXY.port), 10)
    peer.settimeout(30)
    return peer


def head(peer):
    """Returns what comes up to the end of the headers, or up to the end."""
    got = b""
    while b"\r\n\r\n" not in got:
        try:
            more = peer.recv(4096)
        except ConnectionResetError:
            break
        if not more:
            break
        got += more
    return got


def status(raw):
    """Sends a request as it stands; returns the status, 0 when the connection was closed without one."""
    with dial() as peer:
        try:
            peer.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass
        words = head(peer).split(b" ", 2)
    return int(words[1]) if len(words) > 2 and words[0].startswith(b"HTTP/1.") else 0


def connect(authority):
    return status(b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n")


def deny(*authorities):
    """Every one is answered with a refusal, not with silence and not with a tunnel."""
    bad = [(authority, seen) for authority in authorities if not 400 <= (seen := connect(authority)) < 500]
    if bad:
        sys.exit(f"not refused: {bad}")


def end(good):
    sys.exit(0 if good else 1)


def tunnel(authority):
    """A tunnel as the proxy gives it, or the end of the probe."""
    peer = dial()
    peer.sendall(b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n")
    answer = head(peer)
    if b" 200 " not in answer.split(b"\r\n")[0] + b" ":
        sys.exit(f"no tunnel to {authority}: {answer[:200]}")
    return peer


def tls(peer, name):
    context = ssl.create_default_context(cafile="trust.txt")
    if name is None:
        context.check_hostname = False
    return context.wrap_socket(peer, server_hostname=name)


def get(authority, path="/", name=None):
    """HTTPS through a tunnel, the server's name being that of the authority unless another is given."""
    host = authority.rpartition(b":")[0].decode()
    with tls(tunnel(authority), name or host) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while more := peer.recv(65536):
            got += more
    return got


def swallowed(raw, authority=b"allow.test:443"):
    """Whether the bytes, sent where a ClientHello is wanted, are answered by nothing but the end."""
    with tunnel(authority) as peer:
        peer.sendall(raw)
        peer.shutdown(socket.SHUT_WR)
        try:
            return peer.recv(1) == b""
        except ConnectionResetError:
            return True
