"""Serve a page on which one plays with cross-entropy, and open it in the browser.

The page has sliders for logits, targets and options of the losses, and shows probabilities, gradients,
training and the landscape of a loss. Its numbers come from the kernels of this package, compiled to
WebAssembly, which run in the browser. Nothing is fetched from the network. The files are static: any web
server can serve the folder. Ctrl-C ends the command.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import socketserver
import sys
import threading
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

FOLDER = Path(__file__).parents[1] / "explore"
_LARGEST_PORT = 2**16 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="the port; by default one that is free"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default: %(default)s, this machine alone; 0.0.0.0: all who reach it)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    try:
        server = _Server(arguments.host, arguments.port)
    except (OSError, UnicodeError) as error:  # a host name that no encoding takes is a UnicodeError
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {arguments.host}, port {arguments.port}: {reason}") from None
    with server:
        try:
            print(f"The page is at {server.url} (Ctrl-C ends this).")
            print(f"Its files are in {FOLDER}; any web server can serve them.", flush=True)
            if not arguments.no_browser:
                # A browser of the terminal, lynx say, holds up its caller until it is left.
                threading.Thread(target=_open, args=(server.url,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= _LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected a number from 0 to {_LARGEST_PORT}")
    return port


def _open(url: str) -> None:
    if not webbrowser.open(url):
        print("There is no browser to open it in; open the address yourself.", file=sys.stderr)


class _Handler(SimpleHTTPRequestHandler):
    # Spelled out, because those of the system may be wrong: Windows' registry can say text/plain of .js, and
    # browsers then refuse to run it.
    extensions_map = {  # noqa: RUF012, which the base class does not annotate either
        "": "application/octet-stream",
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Have browsers ask each time, so that after an upgrade no old file is run with new ones."""
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the terminal quiet."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True  # a connection that is kept open does not hold up the end
    allow_reuse_address = os.name != "nt"  # on Windows that would let two servers have one port

    def __init__(self, host: str, port: int) -> None:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        super().__init__(cast(Any, address), partial(_Handler, directory=str(FOLDER)))

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host, port = self.server_address[:2]
        address = ipaddress.ip_address(str(host).partition("%")[0])
        if address.is_unspecified:
            return f"http://localhost:{port}/"
        return f"http://[{address}]:{port}/" if address.version == 6 else f"http://{address}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that goes away in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
