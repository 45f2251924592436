"""The command line as a user calls it: version, help, doctor, info."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_bundle import build_fake_bundle
from video_samples import sample_clip

from streamsplat_edge import __version__, cli, machine
from streamsplat_edge.commands.stopping import Stop
from streamsplat_edge.runtime.cuda import driver
from streamsplat_edge.runtime.video import open_video

DEMO = Path(__file__).resolve().parents[2] / "demo"


def test_version(call) -> None:
    result = call("--version")
    assert (result.returncode, result.stdout.strip()) == (0, f"streamsplat-edge {__version__}")


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("info", "-h"), ("doctor", "-h")])
def test_help(arguments: tuple[str, ...], call) -> None:
    result = call(*arguments)
    assert result.returncode == 0 and "usage: streamsplat-edge" in result.stdout and not result.stderr


def test_help_lists_every_command(call) -> None:
    text = call("--help").stdout
    assert all(name in text for name in ("run", "info", "doctor"))


def test_version_and_help_are_fast_and_load_nothing_heavy() -> None:
    code = """
import sys
from streamsplat_edge.cli import main
try:
    main(["run", "--help"])
except SystemExit:
    pass
heavy = {"numpy", "av", "onnxruntime", "openvino", "torch", "onnx", "tqdm"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        best = min(best, time.perf_counter() - start)
    assert result.stdout.rstrip().endswith("heavy: []"), result.stdout + result.stderr
    assert best < 1.0, "0.1 s when idle; the margin is for a loaded machine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required"),
        (("fly",), "invalid choice"),
        (("run",), "INPUT"),
        (("run", "x", "--gap", "0"), "must be 1 or more"),
        (("run", "x", "--gap", "two"), "'two' is not a whole number"),
        (("run", "x", "--threads", "-1"), "must be 0 or more"),
        (("run", "x", "--max-frames", "0"), "must be 1 or more"),
        (("run", "x", "--folder-rate", "0"), "frames per second"),
        (("run", "x", "--folder-rate", "nan"), "frames per second"),
        (("run", "x", "--folder-rate", "2000"), "frames per second"),
        (("run", "x", "--folder-rate", "fast"), "frames per second"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 2 and not printed.out
    assert "usage:" in printed.err and message in printed.err


def test_out_of_memory_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(args: object) -> int:
        raise MemoryError("Unable to allocate 8.00 GiB")

    monkeypatch.setattr(cli, "_info", exhausted)
    assert cli.main(["info", "x.bundle"]) == 2
    assert "error: not enough memory: Unable to allocate 8.00 GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_exit_code_names_the_signal(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before frames flow: who supervises a service tells its end from a failure by it."""

    def waiting(args: object) -> int:
        with Stop():
            os.kill(os.getpid(), number)
            signal.pause()
        return 0

    monkeypatch.setattr(cli, "_info", waiting)
    # Whoever started these tests may ignore it (nohup, a shell in the background), and that is respected.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        assert cli.main(["info", "x.bundle"]) == code
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("module", "said"),
    [("cli", ""), ("export.cli", ""), ("commands.info", "interrupted\n")],
)
def test_interrupted_while_it_is_imported(module: str, said: str) -> None:
    code = f"""
import os, signal, sys
from streamsplat_edge.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where these tests run
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "streamsplat_edge.{module}":
            os.kill(os.getpid(), signal.SIGINT)
assert "streamsplat_edge.cli" not in sys.modules, "what is imported earlier is not guarded"
sys.meta_path.insert(0, Interrupter())
sys.argv[1:] = ["info", "x.bundle"]
sys.exit(main())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", said)


def test_doctor(call) -> None:
    result = call("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.rstrip().endswith("ready")
    for word in (
        "python",
        "onnxruntime",
        "native core",
        "will be used",
        "rasterizer",
        "CPUExecutionProvider",
    ):
        assert word in result.stdout, word


def test_doctor_json(call) -> None:
    report = json.loads(call("doctor", "--json").stdout)
    assert report["ready"] is True and report["problems"] == []
    assert report["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert report["machine"]["cores_usable"] == len(os.sched_getaffinity(0))
    assert report["packages"]["native core"]["simd"] in ("avx512", "avx2", "scalar", "neon")
    assert "CPUExecutionProvider" in report["packages"]["onnxruntime"]["providers"]


@pytest.mark.parametrize(
    "tools", [["Test GPU, 580.1, 8.7, 8192 MiB"], []], ids=["nvidia-smi", "driver alone"]
)
def test_gpus_of_the_driver_where_its_tools_are_missing(
    tools: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with the capability `compute` alone."""
    there = {0: driver.DeviceInfo("Test GPU", "8.7", 1 << 30), 1: driver.DeviceInfo("Other", "9.0", 1 << 30)}
    monkeypatch.setattr(driver, "cuda_device", there.get)
    monkeypatch.setattr(machine, "command_lines", lambda name, *_: tools if name == "nvidia-smi" else [])
    gpus = machine.describe_cuda()["gpus"]
    assert [gpu["name"] for gpu in gpus] == (["Test GPU"] if tools else ["Test GPU", "Other"])
    assert gpus[0]["compute_capability"] == "8.7"


def test_a_cpu_without_a_name_goes_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"
    monkeypatch.setattr(machine, "_read", lambda path: orin if path == "/proc/cpuinfo" else "")
    described = machine.describe_machine()
    assert described["cpu"] == "implementer 0x41, part 0xd42"
    assert described["cpu_features"] == ["asimd", "asimddp"]


def test_doctor_survives_broken_packages(tmp_path: Path, call) -> None:
    """Packages that raise, abort the process, exit, or print rubbish on import."""
    (tmp_path / "cupy.py").write_text("raise RuntimeError('libcuda.so.1: wrong ELF class')")
    (tmp_path / "tensorrt.py").write_text("import os; os.abort()")
    (tmp_path / "moderngl.py").write_text("import sys; sys.exit(0)")
    (tmp_path / "tensorrt_rtx.py").write_text("print('hello'); __version__ = '1.2.3'")
    (tmp_path / "openvino.py").write_text("import a_module_that_it_needs")
    result = call("doctor", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    packages = json.loads(result.stdout)["packages"]
    assert packages["cupy"]["status"] == "broken" and "wrong ELF class" in packages["cupy"]["problem"]
    assert packages["tensorrt"]["status"] == "broken"
    assert packages["moderngl"]["status"] == "broken"
    assert packages["tensorrt_rtx"] == {"status": "ok", "version": "1.2.3"}
    assert packages["openvino"]["status"] == "broken" and "it_needs" in packages["openvino"]["problem"]
    assert "BROKEN" in call("doctor", env={"PYTHONPATH": str(tmp_path)}).stdout


def test_doctor_names_a_broken_requirement(tmp_path: Path, call) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('DLL load failed')")
    result = call("doctor", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "problem: onnxruntime is broken" in result.stdout and "pip install" in result.stdout


def test_info(tmp_path: Path, call) -> None:
    path = tmp_path / "fake.bundle"
    build_fake_bundle(path)
    result = call("info", path)
    assert result.returncode == 0, result.stderr
    for word in ("fake", "encode.onnx", "deform.onnx", "Gaussians", "provenance", "hashes verified"):
        assert word in result.stdout, word
    report = json.loads(call("info", path, "--json").stdout)
    assert report["format"] == "streamsplat-bundle" and report["name"] == "fake"


def test_info_refuses_a_damaged_bundle(tmp_path: Path, call) -> None:
    path = tmp_path / "fake.bundle"
    build_fake_bundle(path)
    data = bytearray((path / "deform.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "deform.onnx").write_bytes(data)
    result = call("info", path)
    assert result.returncode == 2 and "error:" in result.stderr and "hint:" in result.stderr
    assert "deform.onnx" in result.stderr and not result.stdout
    answer = json.loads(call("info", path, "--json").stdout)
    assert answer["error"]["kind"] == "BundleError" and answer["error"]["hint"]


def test_info_sends_no_control_sequences_to_the_terminal(tmp_path: Path, call) -> None:
    path = tmp_path / "fake.bundle"
    build_fake_bundle(path)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["provenance"] = {"data\x1b[2J": "\x1b]0;title\x07", "half": "\ud800"}
    (path / "bundle.json").write_text(json.dumps(manifest))
    result = call("info", path)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout and "u001b]0;title" in result.stdout


def test_info_says_how_good_a_bundle_is_clip_by_clip(tmp_path: Path, call) -> None:
    path = tmp_path / "fake.bundle"
    build_fake_bundle(path)
    scores = {"key": 40.125, "between": 30, "blend": None, "ssim": {"key": 0.9}}
    quality = {"gap": 4, "clips": {"a\x1b": scores, "b": "good"}, "average": scores}
    manifest = json.loads((path / "bundle.json").read_text())
    (path / "bundle.json").write_text(json.dumps({**manifest, "quality": quality}))
    result = call("info", path)
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[lines.index("quality") + 1 :] == [
        "gap: 4",
        '"a\\u001b": key frames 40.12, in between 30.00',
        "average: key frames 40.12, in between 30.00",
    ]


def test_info_of_nothing(tmp_path: Path, call) -> None:
    result = call("info", tmp_path / "no.bundle")
    assert result.returncode == 2 and "error:" in result.stderr and "Traceback" not in result.stderr


def test_a_current_folder_that_was_deleted_is_said_in_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamsplat_edge", "run", str(DEMO / "clip.mp4"), "-o", "o.mp4"]
    command += ["--bundle", str(DEMO / "tiny.bundle")]
    script = f"mkdir gone && cd gone && rmdir ../gone && {shlex.join(command)}"
    result = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "error: the current folder was deleted." in result.stderr and "Traceback" not in result.stderr


def test_output_into_a_closed_pipe() -> None:
    command = f"{sys.executable} -m streamsplat_edge doctor | true"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["run", "view", "bench"])
def test_more_threads_than_cores_are_not_started(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Many more took many times as long, and memory, without a word."""
    cores = len(os.sched_getaffinity(0))
    for given, wanted in ((0, 0), (1, 1), (cores, cores), (999, cores)):
        args = cli.build_parser().parse_args([command, "x.mp4", "--threads", str(given)])
        assert args.threads == wanted
        told = capsys.readouterr().err
        assert ("note: --threads 999" in told and str(cores) in told) if given == 999 else told == ""


UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


@UNBUFFERED
@pytest.mark.parametrize("argument", ["doctor", "--help"])
def test_a_reader_that_left_is_no_news(argument: str, unbuffered: str, call) -> None:
    """As in `... | head`: Python complained of it in the end, where output is buffered."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        options = {"capture_output": False, "stdout": pipe, "stderr": subprocess.PIPE}
        result = call(argument, env={"PYTHONUNBUFFERED": unbuffered}, **options)
    assert result.stderr == "" and result.returncode in (0, 2)  # argparse looks away where it prints help


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
@UNBUFFERED
def test_output_on_a_full_disk(unbuffered: str, call) -> None:
    with Path("/dev/full").open("w") as disk:
        options = {"capture_output": False, "stdout": disk, "env": {"PYTHONUNBUFFERED": unbuffered}}
        result = call("doctor", stderr=subprocess.PIPE, **options)
        assert result.returncode == 2 and result.stderr.startswith("error: Standard output cannot be written")
        assert "hint: " in result.stderr and "Traceback" not in result.stderr
        assert call("doctor", stderr=disk, **options).returncode == 2, "nowhere to tell it"


def test_standard_files_that_are_closed(tmp_path: Path, fake_bundle: Path) -> None:
    """Some programs start others so. The video must not get the number that libraries print to."""
    clip, out = sample_clip(tmp_path / "a.mp4", 4), tmp_path / "o.mp4"
    program = "import os, sys; [os.close(fd) for fd in range(3)]; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "streamsplat_edge", "run", clip, "--bundle", fake_bundle, "-o", out]
    shell = [sys.executable, "-c", program, *command]
    assert subprocess.run(shell, timeout=180).returncode == 0
    with open_video(out) as reader:
        assert sum(1 for _ in reader) == 4
