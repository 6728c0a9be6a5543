"""`normscape explore`: a local page on a trained system."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from normscape.cli_shared import MODELS, RUNS, RunsOption, VerboseOption, examples, find_run
from normscape.errors import UserError

RunOption = Annotated[Path | None, typer.Option("--run", metavar="FOLDER", help="A run whose controllers are trained.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="URI", help="A registered model instead: models:/normscape-brain@champion.")
]
HostOption = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="Where to listen. Beyond this machine (0.0.0.0) the page asks for a token."),
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", metavar="DIR", help="Keep dropped scans and their maps here. Else they are deleted.")
]
OpenOption = Annotated[bool, typer.Option("--open/--no-open", help="Open it in this machine's browser.")]
MegabytesOption = Annotated[int, typer.Option("--max-megabytes", min=1, metavar="N", help="Largest scan that can be dropped.")]
UploadsOption = Annotated[int, typer.Option("--max-uploads", min=1, metavar="N", help="Most scans that are kept at once.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    shown = examples(
        "normscape explore --run chairs-demo --open",
        "normscape explore --model models:/normscape-brain-cpu@champion --folder maps",
        "normscape explore --run brain-cpu --host 0.0.0.0 --port 9000",
    )
    app.command("explore", rich_help_panel=MODELS, epilog=shown)(explore_command)


def explore_command(
    run: RunOption = None,
    model: ModelOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8765,
    folder: FolderOption = None,
    is_opened: OpenOption = False,
    max_megabytes: MegabytesOption = 200,
    max_uploads: UploadsOption = 20,
    runs_dir: RunsOption = RUNS,
    verbose: VerboseOption = False,
) -> None:
    """Move an attribute on a page, and map scans that are dropped there.

    Serves the page until Ctrl-C. NORMSCAPE_EXPLORE_TOKEN sets the token instead of a random one.
    """
    from normscape.explore.security import TOKEN_VARIABLE, chosen_token
    from normscape.explore.server import Settings, listening, warnings
    from normscape.explore.trained import load_registered, load_run
    from normscape.runner import sigterm_as_ctrl_c

    if (run is None) == (model is None):
        raise UserError("give one of --run FOLDER and --model models:/NAME@ALIAS")
    token = chosen_token(host, os.environ.get(TOKEN_VARIABLE))
    settings = Settings(host, port, folder, max_megabytes << 20, max_uploads, token)
    with sigterm_as_ctrl_c(), hangup_as_sigterm():
        trained = load_run(find_run(run, runs_dir)) if run is not None else load_registered(str(model), runs_dir)
        with listening(trained, settings) as page:
            for sentence in warnings(settings):
                sys.stderr.write(f"note: {sentence}\n")
            where = f"kept in {page.storage.folder}" if page.storage.is_kept else "deleted at the end"
            sys.stderr.write(f"{trained.origin}; dropped scans are {where}; Ctrl-C ends it\n")
            sys.stdout.write(f"page  {page.url}\n")
            sys.stdout.flush()
            if is_opened:
                # its socket listens already; some browsers return only when they are closed
                threading.Thread(target=webbrowser.open, args=(page.url,), daemon=True).start()
            page.run()


@contextmanager
def hangup_as_sigterm() -> Iterator[None]:
    """A terminal that is closed ends the page, too, else dropped scans would stay behind; `nohup` is left as it is."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
