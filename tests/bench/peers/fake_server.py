"""A server of completions that streams so many tokens: python -m tests.bench.peers.fake_server TOKENS PORT."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["stream"]
        assert asked["ignore_eos"]
        self.send_response(200)
        self.end_headers()
        for _ in range(int(sys.argv[1])):
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        usage = {"completion_tokens": int(sys.argv[1])}
        self.wfile.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
