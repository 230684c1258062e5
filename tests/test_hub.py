import contextlib
import socket

import pytest
from huggingface_hub import constants

from clipx.hub import cache_only_when_unreachable, reachable


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def listening(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.fixture
def refusing(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("listening")
def test_a_hub_that_answers_is_used(monkeypatch):
    assert reachable()
    with cache_only_when_unreachable() as online:
        assert online
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the user said so
    assert not reachable()
    with cache_only_when_unreachable() as online:
        assert not online
        assert constants.HF_HUB_OFFLINE
    assert constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("refusing")
def test_without_a_hub_only_the_cache_is_read():
    assert not reachable()
    with cache_only_when_unreachable() as online:
        assert not online
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with contextlib.suppress(ZeroDivisionError), cache_only_when_unreachable():
        raise ZeroDivisionError
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("refusing")
def test_only_a_proxy_knows_what_is_behind_it(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert reachable()
