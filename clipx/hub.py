"""Reach the Hugging Face hub, or say quickly that it cannot be reached."""

import contextlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers within ``timeout`` seconds; true behind a proxy, which alone can tell."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    parts = urlsplit(constants.ENDPOINT)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=timeout).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def cache_only_when_unreachable() -> Iterator[bool]:
    """Within the block the hub client looks only into its cache where there is no network.

    The client otherwise retries every file with growing pauses and takes a minute to say that it is offline.

    Yields:
        whether the hub is reachable.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    online = reachable()
    constants.HF_HUB_OFFLINE = not online
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE = before
