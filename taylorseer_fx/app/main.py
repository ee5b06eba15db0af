"""Serve the page on this machine, until it is stopped."""

import socket
import threading
import webbrowser
from collections.abc import Callable

import gradio as gr

from taylorseer_fx.app.page import CSS, Page
from taylorseer_fx.app.runs import Workbench
from taylorseer_fx.errors import ConfigError

HOST = "127.0.0.1"


def run_app(port: int, opens: bool, say: Callable[[str], object]) -> None:
    """Serve until the keyboard interrupts; ``say`` is given the address, which a browser opens with ``opens``.

    Raises:
        ConfigError: the port is taken.
    """
    port = free_port(port)
    page = Page(Workbench())
    address = serve(page.blocks, port)
    say(f"The page is at {address} until Ctrl+C stops it.")
    if opens:
        webbrowser.open(address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.blocks.close(verbose=False)


def serve(blocks: gr.Blocks, port: int) -> str:
    """Serve in a thread, to this machine only; returns the address."""
    _, address, _ = blocks.launch(
        server_name=HOST,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        show_error=True,
        theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css_paths=CSS,
    )
    return address


def free_port(port: int) -> int:
    """The port, if nobody listens there; for 0 one that is free.

    Raises:
        ConfigError: it is taken, or there is none of that number.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError("port", "one that is free, or 0 for any that is", port, f"{error}.") from None
        chosen: int = trial.getsockname()[1]
    return chosen
