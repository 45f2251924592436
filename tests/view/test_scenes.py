"""The buffer of the last seconds, and what a client gets of it next."""

from __future__ import annotations

import pytest
from decoder import KeyFrameMessage, PairMessage, PictureMessage, decode
from view_samples import random_key_frame, random_pair

from streamsplat_edge.runtime.view.delivery import Delivery
from streamsplat_edge.runtime.view.scenes import KeyFrame, Pair, SceneBuffer

G = 20


def grow(buffer: SceneBuffer, first: int, last: int, *, cuts: tuple[int, ...] = ()) -> None:
    """Key frames `first` to `last` - 1, one per second, each with a pair and a picture."""
    for i in range(first, last):
        buffer.add_key_frame(KeyFrame(i, float(i), random_key_frame(i, G)))
        if i and i not in cuts:
            assert buffer.add_pair((i - 1, i), **random_pair(i, G))
        buffer.add_picture(float(i), 4 * i, b"jpeg")


class Client:
    """Remembers what it was sent: K3, P2-3, J3. A pair must come after its key frames."""

    def __init__(self, buffer: SceneBuffer, lag: int = 4) -> None:
        self.delivery = Delivery(buffer, lag)
        self.names: list[str] = []

    def read(self) -> str | None:
        data = self.delivery.next()
        if data is None:
            return None
        message = decode(data)
        if isinstance(message, KeyFrameMessage):
            name = f"K{message.index}"
        elif isinstance(message, PairMessage):
            assert {f"K{index}" for index in message.indices} <= set(self.names)
            name = "P{}-{}".format(*message.indices)
        else:
            assert isinstance(message, PictureMessage)
            name = f"J{message.frame // 4}"
        assert name not in self.names, "sent twice"
        self.names.append(name)
        return name

    def read_all(self) -> list[str]:
        """Until it has everything."""
        return list(iter(self.read, None))


def test_seconds_are_a_bound() -> None:
    buffer = SceneBuffer(3.0, 1 << 30)
    grow(buffer, 0, 50)
    pairs = [entry.scene for entry in buffer.newest_first() if isinstance(entry.scene, Pair)]
    assert [pair.later.index for pair in pairs] == [49, 48, 47, 46]
    keys = [entry.scene.index for entry in buffer.newest_first() if isinstance(entry.scene, KeyFrame)]
    assert keys == [49, 48, 47, 46, 45]
    assert buffer.oldest == 45.0


def test_bytes_are_a_bound_and_are_counted() -> None:
    """Memory neither depends on the length of the stream nor on how long a second is."""
    buffer = SceneBuffer(1e9, 40_000)
    grow(buffer, 0, 100)
    level = buffer.bytes
    assert level <= 40_000
    assert level == sum(entry.size for entry in buffer.newest_first())
    grow(buffer, 100, 300)
    assert buffer.bytes <= 40_000 and abs(buffer.bytes - level) < 4_000
    assert not [n for n in buffer._users if buffer.get(n) is None], "no count of a key frame that is gone"


def test_the_newest_stays_however_little_room_there_is() -> None:
    buffer = SceneBuffer(1e-9, 1)
    grow(buffer, 0, 5)
    names = sorted(Client(buffer).read_all())
    assert names == ["J4", "K3", "K4", "P3-4"]


def test_a_pair_without_its_key_frame_is_not_taken() -> None:
    buffer = SceneBuffer(10, 1 << 30)
    buffer.add_key_frame(KeyFrame(1, 1.0, random_key_frame(1, G)))
    assert not buffer.add_pair((0, 1), **random_pair(1, G))


@pytest.mark.parametrize(
    ("time", "wanted"),
    [
        (-5.0, "0-1"),
        (0.0, "0-1"),
        (0.5, "0-1"),
        (1.0, "0-1"),
        (1.5, "1-2"),
        (2.5, "1-2"),
        (3.0, "3"),
        (9.0, "4-5"),
    ],
)
def test_scene_at(time: float, wanted: str) -> None:
    """0, 1, 2 are a scene, 3 is alone, 4 and 5 are a scene; between two scenes what had begun is shown."""
    buffer = SceneBuffer(100, 1 << 30)
    grow(buffer, 0, 6, cuts=(3, 4))
    scene = buffer.scene_at(time)
    name = f"{scene.earlier.index}-{scene.later.index}" if isinstance(scene, Pair) else str(scene.index)  # type: ignore[union-attr]
    assert name == wanted


def test_scene_at_of_nothing() -> None:
    assert SceneBuffer(1, 1).scene_at(0.0) is None


def test_a_client_from_the_start_gets_everything_in_order() -> None:
    buffer = SceneBuffer(100, 1 << 30)
    client = Client(buffer)
    assert client.read() is None
    for i in range(4):
        grow(buffer, i, i + 1)
        client.read_all()
    assert client.names == ["K0", "J0", "K1", "P0-1", "J1", "K2", "P1-2", "J2", "K3", "P2-3", "J3"]
    assert client.delivery.left_out == 0


def test_a_late_client_sees_the_newest_at_once_and_then_the_past() -> None:
    buffer = SceneBuffer(100, 1 << 30)
    grow(buffer, 0, 6)
    names = Client(buffer).read_all()
    assert names[:4] == ["K4", "K5", "P4-5", "J5"]
    assert names[4:8] == ["J4", "K3", "P3-4", "J3"]
    assert len(names) == 6 + 5 + 6


def test_a_client_that_is_behind_jumps_and_catches_up_later() -> None:
    buffer = SceneBuffer(100, 1 << 30)
    grow(buffer, 0, 2)
    client = Client(buffer, lag=4)
    client.read_all()
    grow(buffer, 2, 12)
    names = client.read_all()
    assert names[:3] == ["K10", "K11", "P10-11"]
    assert client.delivery.left_out == 9
    assert set(names) == {f"{kind}{i}" for kind in "KJ" for i in range(2, 12)} | {
        f"P{i - 1}-{i}" for i in range(2, 12)
    }


def test_a_client_that_hardly_reads_costs_nothing() -> None:
    """There is no queue per client: what it remembers is bounded by the buffer."""
    buffer = SceneBuffer(3.0, 1 << 30)
    client = Client(buffer)
    for i in range(0, 200, 10):
        grow(buffer, i, i + 10)
        client.read()
    assert len(client.delivery._sent) < 3 * len(list(buffer.newest_first()))
    client.read_all()
    assert {"K198", "K199", "P198-199"} <= set(client.names)
