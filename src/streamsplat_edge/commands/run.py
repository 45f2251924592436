"""`streamsplat-edge run`: a video in, what its Gaussians look like out, with measurements."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..cli import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL, EXIT_REFUSED
from ..runtime.bundle import Bundle
from ..runtime.compose import panel_aspect
from ..runtime.contact_sheet import contact_sheet
from ..runtime.errors import DeviceLostError
from ..runtime.outputs.savers import Outputs
from ..runtime.panels import Panels, parse_layout
from ..runtime.pipeline import Pipeline, Rendered
from ..runtime.power import Nvml, PowerMeter, find_rails
from ..runtime.stream import Stream, open_stream
from ..runtime.video import (
    DecodedFrame,
    VideoReader,
    encode_png,
    open_video,
    open_writer,
    write_bytes,
)
from ..runtime.video.writer import FolderWriter, VideoWriter
from ..source_options import drops_frames, key_frame_rule, live_options, stays_on_gpu
from ..view_options import open_viewer
from . import report
from .arguments import check_arguments, find_bundle
from .effects import check_effects_on_readers
from .save import camera_path, save_targets, shows_depth
from .statistics import statistics
from .stopping import Stop
from .view import Viewer

if TYPE_CHECKING:
    from ..runtime.display.observer import LiveDisplay
    from ..runtime.view.viewer import LiveViewer

_PROGRESS_AFTER = 2.0  # seconds


def main(args: argparse.Namespace) -> int:
    """Runs the command; see `cli` for the exit codes."""
    if len(args.inputs) > 1:
        from .run_many import main as run_many

        return run_many(args)
    args.input = args.inputs[0]
    live = live_options(args)
    outputs = check_arguments(args)
    bundle = Bundle.load(find_bundle(args.bundle))
    with ExitStack() as stack, Stop() as stop:
        reader = stack.enter_context(
            open_video(
                args.input,
                folder_rate=args.folder_rate,
                threads=args.threads,
                live=live,
                decode=args.decode,
                surfaces=stays_on_gpu(args),
            )
        )
        check_effects_on_readers(args, [reader])
        run = Run(args, bundle, reader, stop)
        run.open_view(stack)
        run.open_display(stack)
        run.open_output(stack)
        run.open_stream(stack)
        run.execute()
        stats = run.finish(outputs)
        code = conclude(args, run, stats, stop)
        run.linger()
    return code


def shown_name(uri: str) -> str:
    """What a page may call an input: a file's name, not where on this machine it lies, and no pipeline."""
    if uri.startswith("gst:"):
        return "GStreamer pipeline"
    return uri if "://" in uri else Path(uri).name


def open_display(title: str, width: int, height: int) -> LiveDisplay:
    """A window for images of this size.

    Raises:
        InputError: there is no screen, no OpenGL, or the extra is not installed.
    """
    from ..runtime.display.observer import LiveDisplay
    from ..runtime.display.window import Window

    return LiveDisplay(Window(title, width, height), aspect=width / height)


class Run:
    """One call of the command, from opened input to finished outputs."""

    def __init__(self, args: argparse.Namespace, bundle: Bundle, reader: VideoReader, stop: Stop) -> None:
        self.args = args
        self.bundle = bundle
        self.reader = reader
        self.stop = stop
        self.model = bundle.model
        self.drops_frames = drops_frames(args, reader)
        self.quality = report.Quality()
        self.writer: VideoWriter | FolderWriter | None = None
        self.panels: Panels | None = None
        self.saved: Outputs | None = None
        self.live_view: LiveViewer | None = None
        self.display: LiveDisplay | None = None
        self.camera = camera_path(args)
        self.decoded = 0
        self.pictures = parse_layout(args.layout)
        if args.output and len(self.pictures) > 1:
            self.panels = Panels(reader.shown_size, self.pictures)
        # PSNR costs a resize of every frame: not where nobody would see it.
        self.measures = bool(
            not args.quiet or args.json or args.stats or args.contact_sheet or self.panels is not None
        )

    def open_output(self, stack: ExitStack) -> None:
        """Before the model is loaded, so that an unwritable place is known at once."""
        source = self.reader.shown_size
        targets = save_targets(self.args)
        if targets:
            self.saved = stack.enter_context(Outputs(targets, self.model, aspect=source[1] / source[0]))
        if not self.args.output:
            return
        if self.panels is not None:
            width, height, aspect = self.panels.width, self.panels.height, None
        else:
            width, height = self.model.width, self.model.height
            aspect = panel_aspect(source, (height, width))
        self.writer = open_writer(
            self.args.output, width, height, rate=self.reader.rate, aspect=aspect, force=self.args.force
        )
        stack.enter_context(self.writer)

    def open_stream(self, stack: ExitStack) -> None:
        args = self.args
        self.stream: Stream = stack.enter_context(
            open_stream(
                self.bundle,
                engine=args.engine,
                device=args.device,
                threads=args.threads,
                precision=args.precision,
            )
        )

    def open_view(self, stack: ExitStack) -> None:
        """First of all: whoever opens the page early sees the first frame."""
        if self.args.view:
            self.live_view = stack.enter_context(
                open_viewer(
                    self.args, shown_name(self.reader.uri), pixel_aspect=float(self.reader.pixel_aspect)
                )
            )
            print(f"view: {self.live_view.url}", file=sys.stderr, flush=True)

    def open_display(self, stack: ExitStack) -> None:
        """Early as well: without a screen there is nothing to wait for."""
        if self.args.display:
            height, width = self.reader.shown_size
            self.display = stack.enter_context(open_display(shown_name(self.reader.uri), width, height))

    def _stopped(self) -> bool:
        """Whether the user has ended the run: by a signal, or by closing the window."""
        if self.display is not None and not self.stop.event.is_set() and self.display.poll():
            self.stop.request()
        return self.stop.event.is_set()

    def linger(self) -> None:
        """`view`, and `run` on a terminal: the page stays, unless the user has ended the run."""
        stays = self.args.stays or sys.stderr.isatty()
        if self.live_view is not None and stays and self.stop.signal is None:
            print("the view stays; Ctrl-C ends it", file=sys.stderr, flush=True)
            self.live_view.wait()

    def frames(self) -> Iterator[DecodedFrame]:
        """The input until it ends or the user stops it. Runs in the decoding thread."""
        for frame in self.reader:
            if self.stop.event.is_set():
                return
            self.decoded += 1
            yield frame

    def begin(self) -> None:
        """What takes the frames, and what shows them."""
        args = self.args
        self.pipeline = Pipeline(
            self.frames(),
            self.stream,
            gap=args.gap,
            rule=key_frame_rule(args),
            max_frames=args.max_frames,
            live=self.drops_frames,
            depth=shows_depth(args),
            stopped=self._stopped,
            observers=[o for o in (self.saved, self.live_view, self.display) if o is not None],
        )
        self.viewer = Viewer(self.stream, self.pipeline.recorder, self.camera)

    def execute(self) -> None:
        args = self.args
        self.begin()
        meter = power_meter(args)
        self.power = meter.result
        total = self.reader.frames_estimate
        if args.max_frames:
            total = min(total or args.max_frames, args.max_frames)
        tty = sys.stderr.isatty()
        self.stop.armed = True
        with (
            self._until_lost(),
            meter,
            closing(self.pipeline.frames()) as frames,
            tqdm(
                total=total,
                unit="frame",
                file=sys.stderr,
                disable=args.quiet,
                delay=_PROGRESS_AFTER,
                mininterval=0.2 if tty else 5.0,
                leave=tty,
            ) as bar,
        ):
            for rendered in frames:
                self.show(rendered)
                bar.update()
        self.stop.armed = False

    power: Callable[[int], dict[str, Any]]
    """What was measured, for so many frames; see `PowerMeter.result`."""

    lost: DeviceLostError | None = None

    @contextmanager
    def _until_lost(self) -> Iterator[None]:
        """A GPU that is lost ends the input, as Ctrl-C does, once there is something to keep."""
        try:
            yield
        except DeviceLostError as error:
            if not self.pipeline.report().frames:
                raise
            self.lost = error

    def show(self, rendered: Rendered) -> None:
        """Measures, composes and writes one frame, each timed by name."""
        viewer, recorder = self.viewer, self.pipeline.recorder
        viewer.begin(rendered)
        decibels = math.nan
        if self.measures:
            decibels = viewer.measure(rendered)
            self.quality.add(decibels, rendered.is_key)
        if rendered.pushes:
            self.push_ms = sum(rendered.pushes[-1].latencies.values())
        if self.writer is not None:
            image: Any
            if self.panels is None:
                image = viewer.plain(rendered, self.pictures[0])
            else:
                moment = viewer.picture(rendered, decibels, self.pictures)
                with recorder.measure("compose"):
                    image = self.panels(moment, self._status(rendered, decibels))
            with recorder.measure("write"):
                self.writer.write(image, rendered.source.timestamp)
        if self.saved is not None:
            with recorder.measure("save"):
                self.saved.add(rendered, self.stream, lambda: viewer.novel(rendered))
        if self.args.contact_sheet:
            viewer.keep(rendered, decibels)

    push_ms = 0.0

    def _status(self, rendered: Rendered, decibels: float) -> str:
        stats = rendered.frame.stats
        return (
            f"frame {rendered.source.index:<4} t {rendered.source.timestamp:.2f} s   "
            f"{stats.lifecycle.alive:,} Gaussians   key frame {self.push_ms:.0f} ms   "
            f"render {stats.latency:.1f} ms   {decibels:.1f} dB"
        )

    def finish(self, outputs: dict[str, Path]) -> dict[str, Any]:
        """Completes the outputs and returns the statistics. A run without a frame writes nothing."""
        if self.writer is not None or self.saved is not None:
            with self.pipeline.recorder.measure("finish"):  # encoders hold frames back until the end
                if self.writer is not None:
                    self.writer.close()
                if self.saved is not None:
                    self.saved.close()
            self.pipeline.finished()
        stats = report.finite(statistics(self))
        if "--stats" in outputs and stats["frames"]["total"]:
            write_bytes(outputs["--stats"], (json.dumps(stats, indent=2) + "\n").encode())
        moments = self.viewer.keeper.choose()
        if "--contact-sheet" in outputs and moments:
            shape = self.reader.shown_size
            sheet = contact_sheet(
                moments, "StreamSplat Edge", report.headline(stats), aspect=shape[1] / shape[0]
            )
            write_bytes(outputs["--contact-sheet"], encode_png(sheet))
        return stats


def power_meter(args: argparse.Namespace) -> PowerMeter:
    """Reads what has a power here, where somebody will see the statistics; else nothing."""
    if not (args.stats or args.json or not args.quiet):
        return PowerMeter([], "no statistics were asked for")
    return PowerMeter(*find_rails(Nvml()))


def conclude(args: argparse.Namespace, run: Run, stats: dict[str, Any], stop: Stop) -> int:
    """Prints the summary and chooses the exit code."""
    reader = run.reader
    if args.json:
        print(json.dumps(stats))
    elif not args.quiet and stats["frames"]["total"]:
        print("\n".join(report.table(stats)))
        for path in (args.output, args.contact_sheet, args.stats, *args.save):
            if path:
                print(f"  wrote {path}")
    for note in reader.notes:
        print(f"note: {reader.uri}: {note}", file=sys.stderr)
    if run.lost is not None:
        done = stats["frames"]["total"]
        print(f"error: {run.lost.message}", file=sys.stderr)
        print(f"hint: what was done until then, {done} frames, is kept. {run.lost.hint}", file=sys.stderr)
        return EXIT_REFUSED
    if stop.signal is not None:
        done = stats["frames"]["total"]
        kept = "what was done until then is kept" if done else "nothing was written"
        print(f"interrupted after {done} frames; {kept}", file=sys.stderr)
        return EXIT_INTERRUPTED if stop.signal == signal.SIGINT else 128 + stop.signal
    if reader.truncated and not (args.max_frames and stats["frames"]["total"] >= args.max_frames):
        print(f"warning: {reader.uri}: {reader.truncated}; this part was processed", file=sys.stderr)
        return EXIT_PARTIAL
    return EXIT_OK
