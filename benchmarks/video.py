"""Captions of a video, an image a second: OpenBLIP against a loop over OpenCV's frames, on the same model.

    pip install --target /tmp/cv --no-deps opencv-python-headless
    PYTHONPATH=/tmp/cv python benchmarks/video.py [--seconds 20] [--model mini] [--rounds 3] [--threads 2]

A 1080p video in H.264 is made here: photos under a moving camera, 30 frames a second, as x264 encodes by default.
The loop is the one that people write: read each frame, convert every 30th to RGB and caption it. The two take turns;
medians of wall-clock time. Where the images differ by more than rounding, the run ends with an error.

"reading" is the images alone, without a model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import Row, add_json_option, finish

import openblip
from openblip.images.video import read_frames
from openblip.jobs.video.description import VideoQuestions
from openblip.jobs.video.run import describe_video

RATE = 30
SIZE = (1920, 1080)
PHOTOS = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_json_option(parser)
    options = parser.parse_args()
    import av
    import cv2  # type: ignore[import-not-found]

    torch.set_num_threads(options.threads)
    model = openblip.load(options.model, device=options.device)
    print(f"{options.model}, {options.threads} threads, PyAV {av.__version__}, OpenCV {cv2.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = make_video(Path(folder) / "clip.mp4", options.seconds)
        print(f"{options.seconds} s of 1080p H.264, {path.stat().st_size / options.seconds / 125_000:.1f} Mbit/s")
        compare_images(path, cv2)
        model.caption(PHOTOS[:2])  # what the first captions of a process take longer is no matter of the video

        def reading() -> int:
            return sum(1 for _ in read_frames(path))

        def reading_theirs() -> int:
            return sum(1 for _ in opencv_images(path, cv2))

        def captions() -> int:
            model.image_cache.clear()
            return describe_video(path, lambda: model, VideoQuestions()).images

        def captions_theirs() -> int:
            model.image_cache.clear()
            return sum(len([model.caption(image)]) for image in opencv_images(path, cv2))

        rows = []
        print("\n| | OpenBLIP images/s | OpenCV loop images/s | times as fast |\n|---|---|---|---|")
        for name, ours, theirs in (
            ("reading", reading, reading_theirs),
            ("captions", captions, captions_theirs),
        ):
            (mine, seen), (other, all_images) = take_turns(ours, theirs, options.rounds)
            print(f"| {name} | {seen / mine:.2f} | {all_images / other:.2f} | {other / mine:.2f} |")
            rows.append(Row(f"video, {name}", other / mine, ours=mine, theirs=other))
    finish(rows, options.json, f"{options.model}, {options.seconds} s of 1080p H.264, {options.threads} threads")


def opencv_images(path: Path, cv2: Any) -> Iterator[Image.Image]:
    """The loop: every frame is read, one in each second is converted."""
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    count = 0
    while capture.isOpened():
        there, frame = capture.read()
        if not there:
            break
        if count % int(rate) == 0:
            yield Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        count += 1
    capture.release()


def compare_images(path: Path, cv2: Any) -> None:
    """Raises SystemExit when the two give other images: other frames would be another work."""
    pairs = zip(read_frames(path), opencv_images(path, cv2), strict=True)
    for (seconds, ours), theirs in pairs:
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).mean()
        if difference > 6:  # OpenCV takes HD for BT.601, and rounds otherwise
            raise SystemExit(f"the images at {seconds} s differ by {difference:.1f} levels in the mean")


def take_turns(
    ours: Callable[[], int], theirs: Callable[[], int], rounds: int
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Median seconds and images of each."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    images = {"ours": 0, "theirs": 0}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            images[name] = way()
            times[name].append(time.perf_counter() - start)
    return tuple((statistics.median(times[name]), images[name]) for name in times)  # type: ignore[return-value]


def make_video(path: Path, seconds: int) -> Path:
    """Photos for two seconds each, under a camera that moves to the right."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"preset": "medium"})
        stream.pix_fmt, stream.width, stream.height = "yuv420p", *SIZE
        for index in range(seconds * RATE):
            shot, step = divmod(index, 2 * RATE)
            if not step:
                with Image.open(PHOTOS[shot % len(PHOTOS)]) as image:
                    wide = image.convert("RGB").resize((SIZE[0] + 4 * RATE, SIZE[1]), Image.Resampling.BICUBIC)
            shown = wide.crop((2 * step, 0, 2 * step + SIZE[0], SIZE[1]))
            frame = av.VideoFrame.from_image(shown)  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
