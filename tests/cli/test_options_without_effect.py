"""Options that nothing would look at are refused with what they need, and accepted where something does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from video_samples import sample_clip

from streamsplat_edge import cli
from streamsplat_edge.commands.effects import (
    check_effects,
    check_effects_on_readers,
    check_effects_on_tracks,
)
from streamsplat_edge.runtime.errors import InputError


def check(*arguments: str) -> None:
    check_effects(cli.build_parser().parse_args(arguments))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sample_clip(tmp_path / "a.mp4", 4)
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        (("--layout", "depth"), "-o OUT.mp4"),
        (("--layout", "reconstruction"), "-o OUT.mp4"),  # the default, but given
        (("--camera", "fixed:yaw=5"), "--layout novel"),
        (("--camera", "swing:yaw=3", "-o", "out.mp4"), "--layout novel"),
        (("--camera", "swing:yaw=3", "--save", "depth_%05d.png"), "--save novel"),
        (("--reconnect", "3"), "Leave it out"),
        (("--silence", "10"), "Leave it out"),
        (("--source-option", "rtsp_transport=udp"), "Leave it out"),
        (("--view-host", "127.0.0.1"), "--view"),
        (("--view-port", "9999"), "--view"),
        (("--view-seconds", "5"), "--view"),
        (("--view-memory", "5"), "--view"),
        (("--folder-rate", "24"), "Leave it out"),
    ],
)
def test_refused(options: tuple[str, ...], needs: str) -> None:
    with pytest.raises(InputError, match=f"^{options[0]} has no effect here: ") as caught:
        check("run", "a.mp4", *options)
    assert needs in caught.value.hint


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.mp4",),
        ("a.mp4", "-o", "out.mp4", "--layout", "depth"),
        ("a.mp4", "-o", "out.mp4", "--layout", "side-by-side", "--camera", "swing"),
        ("a.mp4", "--save", "novel_%05d.png", "--camera", "swing"),
        ("a.mp4", "--contact-sheet", "sheet.png", "--camera", "swing"),
        ("a.mp4", "rtsp://host/x", "--reconnect", "3", "--silence", "5", "--source-option", "a=b"),
        ("camera:0", "--reconnect", "3"),
        ("a.mp4", "--view", "--view-port", "9999", "--view-memory", "5"),
        ("images", "--folder-rate", "30"),
        ("a.mp4", "images", "--folder-rate", "30"),
        ("not-there", "--folder-rate", "30"),  # opening it says what is wrong
        ("a.mp4", "--force", "--quiet", "--policy", "block"),
    ],
)
def test_accepted(arguments: tuple[str, ...]) -> None:
    check("run", *arguments)


def test_the_page_of_the_command_view() -> None:
    check("view", "a.mp4", "--view-port", "9999", "--view-seconds", "5")
    parse = cli.build_parser().parse_args
    check_effects_on_tracks(parse(["view", "t.npz", "--view-port", "9999", "--view-memory", "5"]))
    for options in (("--layout", "depth"), ("-o", "x.mp4"), ("--silence", "5"), ("--folder-rate", "24")):
        with pytest.raises(InputError, match=f"^{options[0]} has no effect here"):
            check_effects_on_tracks(parse(["view", "t.npz", *options]))


def test_the_command_refuses_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "a.mp4", "--bundle", "none.bundle", "-o", "out.mp4", "--reconnect", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: --reconnect has no effect here")
    assert not (folder / "out.mp4").exists()


def test_to_reconnect_to_recordings_over_http() -> None:
    """Of `http://` it is known once it is open; one live source among the inputs is enough."""
    recording: Any = SimpleNamespace(uri="http://host/a.mp4", reconnects=False)
    live: Any = SimpleNamespace(uri="http://host/live", reconnects=True)
    parse = cli.build_parser().parse_args
    given, not_given = (parse(["run", "http://host/a.mp4", *more]) for more in (("--reconnect", "3"), ()))
    with pytest.raises(InputError, match=r"^--reconnect has no effect here: .*http://host/a\.mp4"):
        check_effects_on_readers(given, [recording])
    check_effects_on_readers(given, [recording, live])
    check_effects_on_readers(not_given, [recording])
