"""How many threads each replica gets, so that all of them have cores of their own. No Ray here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import InputError


def threads_per_replica(
    machines: Sequence[Mapping[str, float]], replicas: int, *, device: str = "cpu", threads: int = 0
) -> tuple[int, str]:
    """Threads of each replica, which are as many cores reserved, and a note where more were asked for.

    Args:
        machines: what each has, as Ray names it: `CPU` (cores) and `GPU`.
        replicas: to be placed on them; on `cuda` each takes a GPU.
        threads: as many at most; 0 for as many as leave room for all replicas.

    Raises:
        InputError: there is no room for so many replicas.
    """

    def room(each: int) -> int:
        places = [int(machine.get("CPU", 0)) // each for machine in machines]
        if device == "cuda":
            places = [
                min(cores, int(machine.get("GPU", 0)))
                for cores, machine in zip(places, machines, strict=True)
            ]
        return sum(places)

    if room(1) < replicas:
        cores = sum(int(machine.get("CPU", 0)) for machine in machines)
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        there = f"{cores} cores" + (f" and {gpus} GPUs" if device == "cuda" else "")
        hint = f"Use --replicas {room(1)}." if room(1) else "Use --device cpu, or machines with a GPU."
        raise InputError(f"There is no room for --replicas {replicas} on {device}: there are {there}.", hint)
    most = 1
    while room(most + 1) >= replicas:
        most += 1
    if threads <= most:
        return threads or most, ""
    return (
        most,
        f"--threads {threads}: with --replicas {replicas} there is room for {most}, and so many are used",
    )
