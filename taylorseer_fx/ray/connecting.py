"""Ray itself: one of our own on this machine, quiet and gone afterwards, or a cluster by its address."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

import ray
from ray._private import worker as ray_worker  # which prints, with no setting that says otherwise
from ray.data import DataContext

from taylorseer_fx.errors import ConfigError
from taylorseer_fx.ray.sampler import must_be_at_least

log = logging.getLogger(__name__)
OWN = {"include_dashboard": False, "object_store_memory": 256 << 20}  # bytes, of rows and reports; workers write the pictures
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
CONNECT_TIMEOUT_S = 5.0
VARIABLES = {
    "RAY_worker_niceness": "0",  # else 15: workers that anything else on the machine goes before
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of what it will do in a later version
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of its C++ part, which writes to the console
}
ABOUT_QUIET = b"Set ray log level from environment variable"  # what that part then writes to the console


@contextmanager
def connected(workers: int, address: str | None = None, num_cpus: float = 1) -> Iterator[None]:
    """Have a Ray inside: the one that is connected already, else the cluster at ``address``, else one for this process.

    Args:
        workers: processes that an own Ray has room for, of ``num_cpus`` each.
        address: of a cluster: "auto" or "HOST:PORT".

    Raises:
        ConfigError: ``workers`` is below 1, or there is no cluster at ``address``.
    """
    must_be_at_least(1, workers=workers)
    if ray.is_initialized():
        if address is not None:
            raise ConfigError("address", "left out where Ray is connected already", address)
        yield
        return
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    with _quiet_data(), _short_news():
        try:
            with _without_line(ABOUT_QUIET):
                if address is None:
                    ray.init(address="local", num_cpus=ceil(workers * num_cpus) + 1, **OWN, **QUIET)
                else:
                    _join(address)
            yield
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    allowed = 'that of a running Ray cluster, "auto" or "HOST:PORT"'
    hint = "'ray start --head' starts one, and prints its address; without an address, a Ray of this process's own is used."
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        if not port.isdigit() or not host:
            raise ConfigError("address", allowed, address, hint)
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConfigError("address", allowed, address, f"Nothing answers there ({error}). {hint}") from None
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError("address", allowed, address, f"Ray could not join it ({error}). {hint}") from error


@contextmanager
def _without_line(text: bytes) -> Iterator[None]:
    """Leave out lines with ``text`` of what is written to the console's errors meanwhile, also by C++."""
    sys.stderr.flush()
    console = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(console, 2)
            os.close(console)
            written.seek(0)
            os.write(2, b"".join(line for line in written if text not in line))


@contextmanager
def _short_news() -> Iterator[None]:
    """Report in a line that a worker died, where Ray prints its guesses why; these are logged."""

    def news(data: Mapping[str, Any], *_: object, **__: object) -> None:
        text = " ".join(map(str, data["lines"]))
        log.info("%s", text)
        if "worker died" in text:
            log.warning("taylorseer_fx: a worker died; another one takes its place, and draws its batch again")

    before = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = news
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = before


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Ray Data without its bars and its lines on the console; its log files are as ever."""
    context, loggers = DataContext.get_current(), [logging.getLogger(name) for name in ("ray.data", "ray")]
    before = context.enable_progress_bars, [logger.level for logger in loggers]
    context.enable_progress_bars = False
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        for logger, level in zip(loggers, before[1], strict=True):
            logger.setLevel(level)
