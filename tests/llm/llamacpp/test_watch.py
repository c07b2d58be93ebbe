"""Noticing that a client has closed its connection."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from image_refinery.llm.llamacpp.watch import ClientWatch

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's and the client's end of a connection."""
    server, client = socket.socketpair()
    with server, client:
        yield server, client


def test_a_closed_connection_is_noticed_at_once(pair: Pair) -> None:
    server, client = pair
    called = threading.Event()
    with ClientWatch(server) as watch:
        watch.on_gone(called.set)
        assert not called.wait(0.05)
        client.close()
        assert called.wait(5)
        assert watch.gone


def test_a_callback_that_comes_too_late_is_called_at_once(pair: Pair) -> None:
    server, client = pair
    client.close()
    with ClientWatch(server) as watch:
        first, second = threading.Event(), threading.Event()
        watch.on_gone(first.set)
        assert first.wait(5)
        watch.on_gone(second.set)
        assert second.is_set()


def test_a_callback_that_was_taken_back_is_not_called(pair: Pair) -> None:
    server, client = pair
    called = threading.Event()
    with ClientWatch(server) as watch:
        watch.on_gone(called.set)
        watch.on_gone(None)
        client.close()
        watch._thread.join(20)  # it has seen the end, and would have called before this
        assert watch.gone
        assert not called.is_set()


def test_taking_back_waits_for_a_callback_that_runs(pair: Pair) -> None:
    server, client = pair
    running, ended = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        time.sleep(0.1)
        ended.set()

    with ClientWatch(server) as watch:
        watch.on_gone(slow)
        client.close()
        assert running.wait(5)
        watch.on_gone(None)
        assert ended.is_set()


def test_the_next_request_of_a_kept_connection_is_not_the_end(pair: Pair) -> None:
    server, client = pair
    with ClientWatch(server) as watch:
        client.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.05)
        assert not watch.gone
    assert server.recv(3) == b"GET"  # left for whoever reads it next


def test_watching_ends_with_the_request_and_leaves_no_thread(pair: Pair) -> None:
    before = set(threading.enumerate())  # a thread of an earlier test may end any time
    with ClientWatch(pair[0]):
        assert len(set(threading.enumerate()) - before) == 1
    assert not set(threading.enumerate()) - before


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are no small numbers there")
def test_descriptors_above_1023_can_be_watched(pair: Pair) -> None:
    import fcntl
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        server, client = pair
        high = fcntl.fcntl(server.fileno(), fcntl.F_DUPFD, 1100)
        called = threading.Event()
        with socket.socket(fileno=high) as connection, ClientWatch(connection) as watch:
            watch.on_gone(called.set)
            client.close()
            assert called.wait(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
