"""`serve`: its arguments, and what it says where Ray is missing. The service itself: tests/serving."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.commands import serve as serve_command
from streamsplat_edge.commands.serve import check_cluster, parse_streams
from streamsplat_edge.runtime.errors import EngineError, InputError, StreamSplatError
from streamsplat_edge.runtime.serving.resources import threads_per_replica


def parsed(*arguments: str) -> list:
    return parse_streams(cli.build_parser().parse_args(["serve", *arguments]))


def test_names_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_clip(tmp_path / "a=b.mp4", 2)
    monkeypatch.chdir(tmp_path)
    specs = parsed(
        "door=rtsp://host/x?a=1", "rtsp://host/y?b=2", "clip=a=b.mp4", "--gap", "6", "--silence", "3"
    )
    assert [(spec.name, spec.uri) for spec in specs] == [
        ("door", "rtsp://host/x?a=1"),
        ("s1", "rtsp://host/y?b=2"),
        ("clip", str(tmp_path / "a=b.mp4")),
    ]
    assert all(spec.gap == 6 and spec.silence_seconds == 3 for spec in specs)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a=x.mp4", "a=y.mp4"), "named a"),
        (("x.mp4", "--replicas", "0"), "--replicas"),
        (("x.mp4", "y.mp4", "z.mp4", "--streams-per-replica", "1", "--replicas", "2"), "room for 2"),
        (("gopher://x",), "gopher"),
    ],
)
def test_impossible_arguments(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(StreamSplatError, match=word) as caught:
        parsed(*arguments)
    assert caught.value.hint


# What replicas get

SMALL, LARGE = {"CPU": 2.0, "GPU": 1.0}, {"CPU": 12.0}


@pytest.mark.parametrize(
    ("machines", "replicas", "device", "threads", "wanted"),
    [
        ([SMALL], 1, "cpu", 0, 2),
        ([SMALL], 2, "cpu", 0, 1),
        ([LARGE], 5, "cpu", 0, 2),
        ([LARGE], 1, "cpu", 3, 3),
        ([SMALL, LARGE], 2, "cpu", 0, 6),  # both on the large one
        ([SMALL, LARGE], 7, "cpu", 0, 2),
        ([SMALL, LARGE], 1, "cuda", 0, 2),  # only the small one has a GPU
        ([{"CPU": 8.0, "GPU": 2.0}], 2, "cuda", 0, 4),
    ],
)
def test_replicas_share_the_cores(
    machines: list[dict[str, float]], replicas: int, device: str, threads: int, wanted: int
) -> None:
    assert threads_per_replica(machines, replicas, device=device, threads=threads) == (wanted, "")


def test_more_threads_than_there_is_room_for() -> None:
    threads, note = threads_per_replica([LARGE], 2, threads=99)
    assert threads == 6 and "--threads 99" in note and "6" in note
    for values, word in (((3, "cpu"), "2 cores"), ((2, "cuda"), "1 GPUs")):
        with pytest.raises(InputError, match=word) as caught:
            threads_per_replica([SMALL], values[0], device=values[1])
        assert re.search(r"--replicas [12]", caught.value.hint)
    with pytest.raises(InputError, match="0 GPUs") as caught:
        threads_per_replica([LARGE], 1, device="cuda")
    assert "--device cpu" in caught.value.hint


# What is printed


class Desk:
    """Answers as the service does."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.report = self

    def remote(self) -> Desk:
        return self

    def result(self) -> dict[str, object]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"streams": answer}


def stream(name: str, state: str, frames: int, error: str = "") -> dict[str, object]:
    return {"name": name, "state": state, "frames": frames, "error": error, "hint": error and "mend it"}


def test_failures_are_told_once_and_change_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_command, "_STATUS_SECONDS", 0.0)
    desk = Desk(
        [stream("a", "running", 3), stream("b", "running", 1)],
        RuntimeError("the desk is being started again"),
        [stream("a", "running", 5), stream("b", "failed", 1, "b: no such file")],
        [stream("a", "ended", 9), stream("b", "failed", 1, "b: no such file")],
    )
    assert serve_command._watch(desk, False) == 3
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "a ended 9   b failed 1"
    assert printed.err == "error: b: no such file\nhint: mend it\n"


def test_a_service_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_command, "_STATUS_SECONDS", 0.0)
    with pytest.raises(EngineError, match="does not answer any more: gone"):
        serve_command._watch(Desk(*[RuntimeError("Traceback\nray.SomeError: gone")] * 100), False)


def test_without_ray(
    tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    clip = sample_clip(tmp_path / "a.mp4", 4)
    assert cli.main(["serve", str(clip), "--bundle", str(fake_bundle)]) == 2
    assert "pip install 'streamsplat-edge[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster_is_told_at_once(
    form: str, tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself tries for minutes, and says nothing meanwhile."""
    clip = sample_clip(tmp_path / "a.mp4", 4)
    with socket.socket() as port:  # taken, so that nobody else listens there, and refused to whoever calls
        port.bind(("127.0.0.1", 0))
        address = form.format(port.getsockname()[1])
        assert cli.main(["serve", str(clip), "--bundle", str(fake_bundle), "--address", address]) == 2
        said = capsys.readouterr().err
        assert f"--address {address}: no Ray cluster" in said and "ray start --head" in said
        port.listen()
        check_cluster(address)


def test_addresses_that_cannot_be() -> None:
    for address in ("127.0.0.1:99999", "ray://[::1:1]:70000"):
        with pytest.raises(EngineError, match="no Ray cluster"):
            check_cluster(address)
    for word in (None, "auto", "local", "nonsense"):
        check_cluster(word)  # Ray says what it makes of it
