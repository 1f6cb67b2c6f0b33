"""Frames of videos: the right ones, at the right times, upright, in the right colours; and videos that are none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.errors import ImageError, OptionError
from openblip.images.frame_hash import frame_hash, is_same_view
from openblip.images.video import read_frames, sampled, scenes, views_every
from openblip.images.video_decode import VideoFile, clock_time
from tests.videos import number_of, numbered, write_video

FRAMES = [numbered(number) for number in range(100)]
REORDERED = {"preset": "veryfast", "bf": "3", "g": "50"}
"""Options of x264: frames that are decoded in another order than they are shown, two in three unused by others."""
UNEVEN = [Fraction(*time) for time in [(0, 1), (1, 10), (95, 100), (101, 100), (7, 2), (18, 5), (41, 10), (8, 1)]]


def shown(path: Path, every: float = 1.0) -> list[tuple[float, int]]:
    return [(round(time, 4), number_of(image)) for time, image in read_frames(path, every)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"options": REORDERED}),
        ("a.mkv", {"options": REORDERED}),
        ("a.ts", {"options": REORDERED}),
        ("a.avi", {"options": REORDERED}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("b.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),
        ("c.mp4", {"codec": "mpeg4", "options": {"bf": "2"}}),
    ],
)
def test_each_second_gives_the_frame_that_is_shown_then(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = write_video(tmp_path / name, FRAMES, **options)
    assert shown(path) == [(0, 0), (1, 25), (2, 50), (3, 75)]
    # 0.48, 0.96, ...: between frames of 0.04 and on them.
    assert shown(path, 0.48) == [(round(k * 0.48, 4), 12 * k) for k in range(9)]
    assert shown(path, 1.5) == [(0, 0), (1.48, 37), (3, 75)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_uneven_times(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, FRAMES[: len(UNEVEN)], UNEVEN, options=REORDERED)
    # A frame that stays for seconds comes once.
    assert shown(path) == [(0, 0), (0.95, 2), (1.01, 3), (3.6, 5), (4.1, 6), (8, 7)]


def test_a_video_that_begins_late(tmp_path: Path) -> None:
    late = [10 + Fraction(index, 25) for index in range(60)]
    assert shown(write_video(tmp_path / "a.mp4", FRAMES[:60], late, options=REORDERED)) == [(0, 0), (1, 25), (2, 50)]
    # Subtitles count from the beginning of the sound.
    late = [Fraction(1, 2) + Fraction(index, 25) for index in range(60)]
    path = write_video(tmp_path / "b.mp4", FRAMES[:60], late, options=REORDERED, sound=(0, 2.5))
    assert shown(path) == [(0.5, 0), (1.5, 25), (2.5, 50)]


def test_rates_that_are_no_whole_number(tmp_path: Path) -> None:
    ntsc = [Fraction(1001 * index, 30_000) for index in range(100)]
    path = write_video(tmp_path / "a.mp4", FRAMES, ntsc, options=REORDERED)
    assert shown(path) == [(0, 0), (0.9676, 29), (1.9686, 59), (2.9696, 89)]


X265 = "log-level=none:bframes=3:keyint=20:min-keyint=20"
OPEN_HEVC = {"preset": "ultrafast", "x265-params": X265}
CLOSED_HEVC = {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=0"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"options": REORDERED}),
        ("b.mp4", {"options": REORDERED | {"g": "12"}}),
        ("c.mkv", {"options": REORDERED | {"g": "12", "x264-params": "open-gop=1"}}),
        ("d.ts", {"options": REORDERED | {"g": "12"}}),
        ("e.mp4", {"options": REORDERED | {"g": "20", "x264-params": "intra-refresh=1"}}),
        ("f.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "20"}}),
        ("g.mp4", {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
        pytest.param("h.mp4", {"codec": "libx265", "options": OPEN_HEVC}, marks=pytest.mark.slow),
        pytest.param("i.mkv", {"codec": "libx265", "options": CLOSED_HEVC}, marks=pytest.mark.slow),
    ],
)
def test_left_out_frames_change_no_pixel(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 255, (96, 320, 3), dtype=np.uint8))
    moving = [noise.crop((index, 0, index + 160, 96)) for index in range(100)]
    path = write_video(tmp_path / name, moving, **options)
    with VideoFile(path, print) as video:
        whole = {frame.time: frame.raw.to_ndarray() for frame in video.frames()}
    assert len(whole) == 100
    for every in (Fraction(7, 25), Fraction(1), Fraction(51, 25)):
        with VideoFile(path, print) as video:
            found = list(sampled(video, every))
        assert len(found) == -(-4 // every)
        for frame in found:
            assert (whole[frame.time] == frame.raw.to_ndarray()).all()


def test_what_is_not_wanted_is_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES, options=REORDERED | {"g": "10"})
    with VideoFile(path, print) as video:
        decoded = sum(1 for _ in video.frames(lambda start, end: end is None or start == 2))
    assert 2 <= decoded < 15  # of a hundred


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_videos_of_phones_are_upright(tmp_path: Path, rotation: int) -> None:
    lying = [numbered(77).rotate(-rotation, expand=True)] * 3
    path = write_video(tmp_path / "a.mp4", lying, rotation=rotation)
    ((_, image),) = read_frames(path)
    assert (image.size, number_of(image)) == ((160, 96), 77)


COLOR = (200, 40, 60)


@pytest.mark.parametrize(
    ("size", "matrix", "pixels", "colors"),
    [
        ((1280, 720), "ITU709", "yuv420p", {}),  # not named: that of HD
        ((640, 360), "ITU601", "yuv420p", {}),  # not named: that of SD
        ((640, 360), "ITU709", "yuv420p", {"colorspace": 1}),
        ((1280, 720), "ITU601", "yuv420p", {"colorspace": 5}),
        ((640, 360), "BT2020", "yuv420p10le", {"colorspace": 9}),
    ],
)
def test_colors(tmp_path: Path, size: tuple[int, int], matrix: str, pixels: str, colors: dict[str, int]) -> None:
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.pix_fmt, stream.width, stream.height = pixels, *size
        for name, value in colors.items():
            setattr(stream.codec_context, name, value)
        plain = av.VideoFrame.from_image(Image.new("RGB", size, COLOR))
        frame = plain.reformat(format=pixels, dst_colorspace=matrix)
        frame.colorspace = colors.get("colorspace", 2)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ((_, image),) = read_frames(path)
    assert np.abs(np.asarray(image).astype(int) - COLOR).max() <= 6


def test_hdr_is_told(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4",
        FRAMES[:3],
        pixels="yuv420p10le",
        colors={"colorspace": 9, "color_primaries": 9, "color_trc": 16},
    )
    with pytest.warns(UserWarning, match="is an HDR video") as told:
        assert shown(path) == [(0, 0)]
    assert told[0].filename == __file__


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGBA", (32, 32), (255, 0, 0, 255)) for _ in range(3)]
    for frame in frames:
        frame.paste((0, 0, 0, 0), (0, 0, 16, 32))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500, disposal=2)
    images = [image for _, image in read_frames(path)]
    assert images and all(image.getpixel((4, 4)) == (255, 255, 255) for image in images)
    assert images[0].getpixel((28, 4)) == (255, 0, 0)


def test_pixels_that_are_no_squares(tmp_path: Path) -> None:
    wide = {"colors": {"sample_aspect_ratio": Fraction(2)}}
    path = write_video(tmp_path / "a.mp4", FRAMES[:3], **wide)
    ((_, image),) = read_frames(path)
    assert image.size == (320, 96)


def test_interlaced_frames_are_not_combed(tmp_path: Path) -> None:
    woven = np.zeros((96, 160, 3), dtype=np.uint8)
    woven[::2] = 230
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1", "crf": "5"}
    path = write_video(tmp_path / "a.mp4", [Image.fromarray(woven)] * 5, options=options)
    ((_, image),) = read_frames(path)
    assert image.size == (160, 96)
    assert np.asarray(image).min() > 200  # of the first field alone


def cut(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def test_what_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.mp4", FRAMES, options=REORDERED, mux={"movflags": "faststart"}), 0.6)
    found: list[int] = []
    with pytest.raises(ImageError, match=r"cut short|read further|damaged"):
        read_into(found, path)
    assert found[:2] == [0, 25] and len(found) < 4


def read_into(found: list[int], path: Path) -> None:
    for _, image in read_frames(path):
        found.append(number_of(image))


def test_a_matroska_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.mkv", FRAMES, options=REORDERED), 0.5)
    with pytest.warns(UserWarning, match="may be cut short"):
        assert [number for _, number in shown(path)][:1] == [0]


def test_damaged_places_are_passed_over(tmp_path: Path) -> None:
    options = {"preset": "veryfast", "bf": "0", "g": "10"}
    path = write_video(tmp_path / "a.mkv", FRAMES, options=options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = b"\xff" * 300
    path.write_bytes(content)
    found: list[int] = []
    with pytest.raises(ImageError):
        read_into(found, path)
    assert found[0] == 0 and found[-1] == 75


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is no video at all, only some words of text", "is not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "is not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41\0\0\0\x08free\0\0\xff\xffmdat" + bytes(5000), "moov"),
    ],
)
def test_what_is_no_video(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=said) as refused:
        next(read_frames(path))
    assert str(path) in str(refused.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, said in [(tmp_path, "is a folder"), (tmp_path / "b.mp4", "does not exist"), ("http://a/b.mp4", "web")]:
        with pytest.raises(ImageError, match=said):
            next(read_frames(path))


def test_pictures_and_sound_are_no_videos(tmp_path: Path) -> None:
    import av

    picture = tmp_path / "a.png"
    numbered(3).save(picture)
    with pytest.raises(ImageError, match="use openblip caption"):
        next(read_frames(picture))
    sound = tmp_path / "a.mp3"
    with av.open(str(sound), "w") as container:
        tone: Any = container.add_stream("mp3", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), dtype=np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(tone.encode(frame))
        container.mux(tone.encode())
    with pytest.raises(ImageError, match="no pictures"):
        next(read_frames(sound))


def test_intervals_are_checked_before_the_file_is_read() -> None:
    for wrong in (0, -1, float("nan"), float("inf"), True, "1", 1e9):
        with pytest.raises(OptionError, match="every is"):
            read_frames("nowhere.mp4", wrong)  # type: ignore[arg-type]


def test_views_that_look_the_same_are_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def noisy(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image).astype(int) + generator.integers(-4, 5, (96, 160, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    images = [noisy(numbered(0 if index < 60 else 5)) for index in range(100)]
    with VideoFile(write_video(tmp_path / "a.mp4", images), print) as video:
        views = list(views_every(video, 1.0))
    assert [(view.start, view.end, number_of(view.image)) for view in views] == [(0, 3, 0), (3, 4, 5)]


def test_large_images_are_made_smaller_and_look_the_same_to_a_model(tmp_path: Path) -> None:
    across, down = np.meshgrid(np.arange(640), np.arange(400))
    waves = 128 + 100 * np.sin(across / 29) * np.cos(down / 27)
    image = Image.fromarray(np.stack([waves, np.roll(waves, 20, 0), across % 250], axis=-1).astype(np.uint8))
    path = write_video(tmp_path / "a.mp4", [image] * 30)
    views = []
    for least in (None, 100, 130):
        with VideoFile(path, print) as video:
            views += list(views_every(video, 1.0, least))
        with VideoFile(path, print) as video:
            views += list(scenes(video, least))
    assert [view.image.size for view in views] == [(640, 400)] * 2 + [(160, 100)] * 2 + [(320, 200)] * 2
    whole, _, smaller, *_ = (
        np.asarray(view.image.resize((50, 50), Image.Resampling.BICUBIC)).astype(int) for view in views
    )
    assert np.abs(whole - smaller).mean() < 1


def test_a_thing_that_moves_in_a_still_picture_is_seen() -> None:
    still = np.full((16, 16, 3), 120, dtype=np.uint8)
    moved = still.copy()
    moved[3, 4] = 90
    slightly = still + 2
    assert is_same_view(frame_hash(still), frame_hash(slightly))
    assert not is_same_view(frame_hash(still), frame_hash(moved))


def test_times_as_people_read_them() -> None:
    assert [clock_time(0), clock_time(3725.6), clock_time(59.96, 1)] == ["0:00:00", "1:02:06", "0:01:00.0"]


def test_without_pyav_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['av'] = None\n"
        "from openblip.images.video import read_frames\n"
        "try: next(read_frames('a.mp4'))\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=600, check=True
    )
    assert done.stdout == 'videos are read with PyAV: pip install "openblip[video]"\n'


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def ffmpeg(*arguments: str | Path) -> None:
    command = ["ffmpeg", "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=600, stdin=subprocess.DEVNULL)


@pytest.mark.slow
@needs_ffmpeg
def test_a_part_that_ffmpeg_cut_out_without_encoding(tmp_path: Path) -> None:
    """An edit list hides the frames before the cut, which lies between two key frames."""
    whole = write_video(tmp_path / "a.mp4", FRAMES, options=REORDERED)
    ffmpeg("-ss", "1.0", "-i", whole, "-c", "copy", tmp_path / "b.mp4")
    assert shown(tmp_path / "b.mp4") == [(0, 25), (1, 50), (2, 75)]


@pytest.mark.slow
@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.flv", "a.mov", "a.h264", "a.nut"])
def test_what_ffmpeg_has_repacked(tmp_path: Path, name: str) -> None:
    whole = write_video(tmp_path / "a.mp4", FRAMES, options=REORDERED)
    ffmpeg("-i", whole, "-c", "copy", tmp_path / name)
    assert shown(tmp_path / name) == [(0, 0), (1, 25), (2, 50), (3, 75)]


@pytest.mark.slow
@needs_ffmpeg
def test_a_cover_is_no_video(tmp_path: Path) -> None:
    numbered(3).save(tmp_path / "cover.png")
    sound = ("-f", "lavfi", "-i", "sine=d=1", "-i", tmp_path / "cover.png", "-map", "0", "-map", "1")
    ffmpeg(*sound, "-c:v", "copy", "-disposition:v", "attached_pic", tmp_path / "a.mp3")
    with pytest.raises(ImageError, match="a cover picture"):
        next(read_frames(tmp_path / "a.mp3"))
