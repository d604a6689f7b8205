"""A TLS server for tests: hands out tokens that docker-registry believes, or serves the files of a directory.

https.py DIR MODE: DIR has leaf.pem and leaf.key. Writes the port to DIR/MODE.port, and for each request one line to
DIR/MODE.log: path, a tab, the Authorization header.
"""

import base64
import http.server
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.parse

DIR, MODE = sys.argv[1:3]


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(claims):
    certificate = subprocess.run(
        ["openssl", "x509", "-in", DIR + "/token.pem", "-outform", "der"], capture_output=True, check=True
    ).stdout
    header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(certificate).decode()]}
    text = encoded(json.dumps(header).encode()) + b"." + encoded(json.dumps(claims).encode())
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", DIR + "/token.key"], input=text, capture_output=True, check=True
    ).stdout
    return (text + b"." + encoded(signature)).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        shown = self.headers.get("Authorization", "")
        with open(DIR + "/" + MODE + ".log", "a") as log:
            log.write(self.path + "\t" + shown + "\n")
        if MODE == "tokens":
            self.token(shown)
        else:
            path = urllib.parse.urlsplit(self.path).path.lstrip("/")
            with open(os.path.join(DIR, "data", path), "rb") as file:
                self.answer(200, file.read())

    do_HEAD = do_GET

    def token(self, shown):
        if shown != "Basic " + base64.b64encode(b"me:s3cret").decode():
            return self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        kind, name, actions = query["scope"][0].split(":")
        now = int(time.time())
        claims = {
            "iss": "test", "sub": "me", "aud": query["service"][0], "nbf": now - 10, "iat": now, "exp": now + 300,
            "jti": "1", "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        return self.answer(200, json.dumps({"token": signed(claims)}).encode())


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(DIR + "/leaf.pem", DIR + "/leaf.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
with open(DIR + "/" + MODE + ".new", "w") as file:
    file.write(str(server.server_port))
os.rename(DIR + "/" + MODE + ".new", DIR + "/" + MODE + ".port")
server.serve_forever()
