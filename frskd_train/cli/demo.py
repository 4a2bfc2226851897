"""`frskd demo`: write a demo page of a student, and serve it on this machine."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT = 7860


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, write the demo and serve it."""
    parser = argparse.ArgumentParser(
        "frskd demo", description="Write a page on which a student runs in the browser, and serve it on this machine."
    )
    parser.add_argument("student", help="folder of a run or a student, hf-hub:OWNER/NAME, or a name with weights")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the page to this folder, without a server")
    parser.add_argument("--no-serve", action="store_true", help="write the page to demo/ in the run, without a server")
    parser.add_argument("--port", type=int, help=f"port of the server (default: {PORT}, or any if it is taken)")
    add_page_arguments(parser, "page")
    options = parser.parse_args(arguments)
    # Imported here, so that --help and a wrong flag answer at once.
    from frskd_train.demo.build import build_demo
    from frskd_train.found_student import find_exported

    found = find_exported(options.student)
    folder = options.output or found.place / ("demo" if found.run else f"demo-{found.name}")
    server = None if options.no_serve or options.output else _bind(folder, options.port)
    build_demo(found, folder, img_size=options.img_size, examples=options.examples, runtime=options.runtime)
    print(f"Wrote {folder}, which any static web server can serve.")
    if server is not None:
        with server, suppress(KeyboardInterrupt):
            print(f"Open http://127.0.0.1:{server.server_port} in a browser; Ctrl-C ends the server.", flush=True)
            server.serve_forever()


def add_page_arguments(parser: argparse.ArgumentParser, title: str) -> None:
    """Add the arguments of the page, which `frskd push --space` has as well."""
    page = parser.add_argument_group(title)
    page.add_argument("--examples", nargs="+", type=Path, default=[], metavar="FILE", help="example images on the page")
    page.add_argument("--img-size", nargs="+", type=int, metavar="N", help="height and width; only for segmentation")
    page.add_argument("--runtime", type=Path, metavar="PATH", help="local copy of the npm package onnxruntime-web")


def _bind(folder: Path, port: int | None) -> ThreadingHTTPServer:
    """Return a server of a folder on the loopback interface, before the folder exists."""
    from frskd_timm.errors import UserError

    for number in (PORT, 0) if port is None else (port,):
        try:
            return ThreadingHTTPServer(("127.0.0.1", number), partial(Handler, directory=str(folder)))
        except (OSError, OverflowError) as error:
            reason = error
    raise UserError(f"--port {port} cannot be used ({reason}): give another one, or 0 for any.")


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with the types that browsers require, and without a log."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_: Any) -> None:
        pass
