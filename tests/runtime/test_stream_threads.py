"""One stream from several threads, and in a forked child: nothing crashes, nothing waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import build_fake_bundle

from streamsplat_edge.runtime.bundle import Bundle
from streamsplat_edge.runtime.engines import ForwardingEngine
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.stream import Stream, open_stream

WAIT = 30.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_fake_bundle(tmp_path_factory.mktemp("threads") / "fake.bundle")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 32, 3), np.uint8)


class Held(ForwardingEngine):
    """A stage that says when it begins and, having begun, gives another thread's call every chance to come
    between."""

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            super().run(inputs, outputs)
            return
        order.append("stage begins")
        inside.set()
        assert tried.wait(WAIT)
        came.wait(0.3)
        super().run(inputs, outputs)
        order.append("stage ends")


order: list[str] = []
inside, tried, came = threading.Event(), threading.Event(), threading.Event()


@pytest.fixture
def stream(bundle: Bundle) -> Iterator[Stream]:
    order.clear()
    for event in (inside, tried, came):
        event.clear()
    with open_stream(bundle, threads=1) as opened:
        opened.push(picture(0), 0.0)
        opened.stages.engines["encode"] = Held(opened.stages.engines["encode"])
        yield opened


def meanwhile(stream: Stream, call: Callable[[], object]) -> list[object]:
    """What a call gives that another thread makes while `stream` is in the midst of a push."""
    results: list[object] = []

    def other() -> None:
        assert inside.wait(WAIT)
        tried.set()
        results.append(call())
        came.set()
        order.append("other call")

    thread = threading.Thread(target=other)
    thread.start()
    stream.push(picture(1), 1.0)
    thread.join(WAIT)
    assert not thread.is_alive()
    return results


def test_a_render_waits_for_the_push_of_another_thread(stream: Stream) -> None:
    (frame,) = meanwhile(stream, stream.render)
    assert order == ["stage begins", "stage ends", "other call"]
    assert frame.timestamp == 1.0  # type: ignore[attr-defined]  # what it waited for


def test_a_fork_waits_likewise_for_the_engines_are_the_same(stream: Stream) -> None:
    other = stream.fork()
    (push,) = meanwhile(stream, lambda: other.push(picture(2), 5.0))
    assert order == ["stage begins", "stage ends", "other call"]
    assert push.timestamp == 5.0  # type: ignore[attr-defined]
    other.close()


def test_frames_of_a_series_wait_likewise(stream: Stream) -> None:
    frames = stream.render_many([0.0])

    def take() -> str:
        with pytest.raises(InputError, match="went on"):
            next(frames)
        return "refused"

    assert meanwhile(stream, take) == ["refused"], "the push came first, whole"
    assert order == ["stage begins", "stage ends", "other call"]


def test_close_lets_the_push_of_another_thread_end(stream: Stream) -> None:
    meanwhile(stream, stream.close)
    assert order == ["stage begins", "stage ends", "other call"]
    with pytest.raises(InputError, match="is closed"):
        stream.push(picture(2), 2.0)


def test_a_forked_child_is_told_to_open_its_own(bundle: Bundle) -> None:
    """Its engines' threads are the parent's: to push, or to release them, would be to wait for ever."""
    program = """
import os, sys
import numpy as np
from streamsplat_edge.runtime.errors import InputError
from streamsplat_edge.runtime.stream import open_stream

image = np.zeros((16, 32, 3), np.uint8)
stream = open_stream(sys.argv[1], threads=2)
stream.push(image, 0.0)
child = os.fork()
if child == 0:
    code = 1
    try:
        stream.push(image, 1.0)
    except InputError as error:
        code = 0 if "another process" in error.message and "Open it in the process" in error.hint else 2
    stream.close()
    with open_stream(sys.argv[1], threads=2) as own:
        own.push(image, 0.0)
    os._exit(code)
stream.push(image, 1.0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", program, Path(bundle.path)]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0
