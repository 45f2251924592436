"""Streams on Ray Serve: a replica is killed, and its streams come back with the loss that was counted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import build_fake_bundle
from rtsp_samples import RtspServer, encode, need_rtsp_server, script
from video_samples import sample_clip

from streamsplat_edge.runtime.serving.spec import StreamSpec

pytestmark = pytest.mark.serve
FRAMES, CAMERA_RATE = 2000, 25
PORT = 8437
PATIENCE = 400  # seconds; Ray takes a quarter of a minute on a quiet machine


def command(tmp_path: Path, *streams: str) -> list[str]:
    build_fake_bundle(tmp_path / "fake.bundle")
    line = [sys.executable, "-m", "streamsplat_edge", "serve", *streams, "--port", str(PORT)]
    return [*line, "--bundle", str(tmp_path / "fake.bundle"), "--threads", "1"]


def orphans(title: str) -> set[int]:
    """Processes without a parent whose title begins so. Those that have ended have none."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if parent == "1" and folder.joinpath("cmdline").read_bytes().startswith(title.encode()):
                found.add(int(folder.name))
    return found


def marked(variable: str) -> list[str]:
    """Command lines of the processes with this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            if variable.encode() in folder.joinpath("environ").read_bytes():
                found.append(folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_the_command_tells_of_streams_and_nothing_else(tmp_path: Path) -> None:
    """One stream fails, the other is complete, and Ray's own messages stay out."""
    pytest.importorskip("ray")
    sample_clip(tmp_path / "good.mp4", 40)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    line = command(tmp_path, f"good={tmp_path / 'good.mp4'}", f"bad={tmp_path / 'bad.mp4'}")
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 3, done.stderr
    good, bad = json.loads(done.stdout.splitlines()[-1])["streams"]
    assert (good["state"], good["frames"], good["position"], good["restarts"]) == ("ended", 40, 39, 0)
    assert (bad["state"], bad["restarts"]) == ("failed", 0) and "bad.mp4" in bad["error"]
    told = done.stderr.splitlines()
    assert told[0].startswith("serving on http://127.0.0.1:") and told[1].startswith("error: bad: ")
    assert len(told) <= 3, done.stderr  # with the hint


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_the_end_of_a_service_end_it_in_order(
    number: int, code: int, word: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    before = orphans("ray::")
    line = command(tmp_path, f"clip={sample_clip(tmp_path / 'clip.mp4', 20000)}")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "running" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert told.splitlines()[1:] == [word], told
    assert orphans("ray::") <= before, "Ray's processes end with the service"


def test_ended_while_ray_starts(tmp_path: Path) -> None:
    """Its node manager is killed before it can end the agents that it has started."""
    pytest.importorskip("ray")
    mark = f"STREAMSPLAT_TEST={tmp_path}"
    line = ["env", mark, *command(tmp_path, f"clip={sample_clip(tmp_path / 'clip.mp4', 20)}")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any("/raylet/raylet" in title for title in marked(mark)):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        shown, told = process.communicate(timeout=PATIENCE)
    assert (process.returncode, shown, told) == (143, "", "terminated\n")
    assert not marked(mark), "Ray's processes end with the service"


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    ray = pytest.importorskip("ray")
    from ray import serve

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield serve
    serve.shutdown()
    ray.shutdown()


def wait(desk: Any, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Asks until the streams, by name, are as wanted."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        streams = {each["name"]: each for each in desk.report.remote().result()["streams"]}
        if holds(streams):
            return streams
        time.sleep(0.05)
    raise AssertionError(f"still not: {streams}")


def check_http() -> None:
    def get(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    code, body = get("/")
    assert code == 200 and {each["name"] for each in json.loads(body)["streams"]} == {"clip", "cam"}
    code, body = get("/cam.png")
    assert code == 200 and body.startswith(b"\x89PNG")
    assert get("/nobody.png")[0] == get("/cam")[0] == get("/../etc/passwd")[0] == 404


def test_a_killed_replica_comes_back(serve: Any, tmp_path: Path) -> None:
    need_rtsp_server()
    from streamsplat_edge.runtime.serving.service import APPLICATION, build

    build_fake_bundle(tmp_path / "fake.bundle")
    clip = sample_clip(tmp_path / "clip.mp4", FRAMES)
    units = encode(200, gop=10)
    camera = script(units * 40, times=[i / CAMERA_RATE for i in range(8000)], pace=1 / CAMERA_RATE)
    with RtspServer(tmp_path, {"cam": [camera]}) as server:
        specs = [StreamSpec("clip", str(clip)), StreamSpec("cam", server.url("cam"))]
        application = build(specs, str(tmp_path / "fake.bundle"), threads=1)
        desk = serve.run(application, name=APPLICATION, route_prefix="/")
        before = wait(desk, lambda s: all(each["frames"] > 20 for each in s.values()))
        check_http()
        assert before["clip"]["pid"] == before["cam"]["pid"], "one replica runs both"
        os.kill(before["cam"]["pid"], signal.SIGKILL)
        killed = time.time()
        after = wait(desk, lambda s: s["cam"]["restarts"] == 1 and s["cam"]["state"] == "running")
        outage = after["cam"]["captured"] - killed
        later = wait(
            desk, lambda s: s["clip"]["state"] == "ended" and s["cam"]["frames"] > 20 + after["cam"]["frames"]
        )
        # A recording: every frame once, also those that were under way when the replica died.
        if before["clip"]["frames"] < FRAMES:
            assert later["clip"]["frames"] == FRAMES and later["clip"]["position"] == FRAMES - 1
        assert later["clip"]["lost_frames"] == 0
        # A camera: what it sent meanwhile is lost, and counted.
        camera_status = later["cam"]
        assert camera_status["restarts"] == 1 and camera_status["pid"] != before["cam"]["pid"]
        assert 0 < camera_status["lost_frames"] <= CAMERA_RATE * (camera_status["lost_seconds"] + 0.1)
        assert camera_status["lost_seconds"] >= outage - 1.0
        serve.delete(APPLICATION)


def test_a_source_that_is_not_there_is_reported_and_a_live_one_tried_again(
    serve: Any, tmp_path: Path
) -> None:
    from streamsplat_edge.runtime.serving.service import APPLICATION, build

    build_fake_bundle(tmp_path / "fake.bundle")
    uri = "rtsp://admin:hunter2@127.0.0.1:9/cam"
    specs = [StreamSpec("cam", uri), StreamSpec("file", str(tmp_path / "none.mp4"))]
    application = build(specs, str(tmp_path / "fake.bundle"), threads=1)
    desk = serve.run(application, name=APPLICATION, route_prefix=None)
    streams = wait(desk, lambda s: s["cam"]["restarts"] >= 2 and s["file"]["state"] == "failed")
    status = streams["cam"]
    assert "no such file" in streams["file"]["error"] and streams["file"]["restarts"] == 0
    assert "refused" in status["error"] and status["hint"] and "hunter2" not in str(status)
    serve.delete(APPLICATION)
