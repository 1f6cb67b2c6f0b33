"""A video file -> its frames in the order in which they are shown, each with its time. PyAV is used here alone.

Files of strangers are opened from the disk as containers of video and as nothing else: FFmpeg also knows lists that
name other files and web addresses, which are not followed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

from openblip.errors import ImageError, OpenBlipError, printable
from openblip.files import NotAFileError, open_file
from openblip.images.decode import pixel_limit
from openblip.images.key_frames import begins_anew
from openblip.images.sources import describe_source, is_address
from openblip.images.video_clock import AHEAD, Clock

if TYPE_CHECKING:
    import numpy as np

CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpegtsraw", "mpeg", "mpegvideo", "flv", "live_flv", "asf", "ogg"),
    *(
        "mxf",
        "rm",
        "nut",
        "dv",
        "wtv",
        "ivf",
        "gxf",
        "lavf",
        "h264",
        "hevc",
        "vvc",
        "m4v",
        "av1",
        "obu",
        "vc1",
        "mjpeg",
    ),
    *("yuv4mpegpipe", "gif", "apng", "swf", "roq", "bink", "smk", "nsv", "pva", "amv", "film_cpk", "mpjpeg"),
)
"""FFmpeg's names of what is opened."""
NO_VIDEO = ("mp3", "aac", "flac", "wav", "w64", "aiff", "ac3", "eac3", "dts", "ape", "wv", "tta", "caf", "amr", "au")
"""Sound alone, perhaps with a cover: opened so that the error says what it is."""
PICTURE = "_pipe"
"""Ends FFmpeg's names of formats of single images."""
BOXES = (b"ftyp", b"mdat", b"wide", b"free", b"skip", b"moov")
"""How a file of the MP4 family begins, four bytes behind its start."""
ATTACHED_PICTURE = 0x400
MOST_HELD, MOST_HELD_BYTES = 600, 32 << 20
"""Packets, and bytes of them, that are held back at most."""
SKIPPING_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg2video"})
"""Their decoders leave out frames that no other frame refers to, without a trace on the others."""
WHOLE_INDEX = frozenset({"mov", "avi"})
"""Containers that list every frame, so that missing ones are known to be missing."""
CUT_SHORT = 1.0
"""Seconds by which the last frame may end before the video should."""
PQ, HLG = 16, 18
"""Numbers of the transfer functions of HDR (ITU-T H.273)."""


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One decoded frame.

    Attributes:
        time: seconds since the start of the video.
        raw: PyAV's frame.
        pixel_shape: the width of a pixel by its height; 1 for a square.
    """

    time: Fraction
    raw: Any
    pixel_shape: Fraction


class VideoFile:
    """An opened video.

    Args:
        path: of an ordinary file.
        tell: called with a sentence about something that the user should know and that is no error.
        reached: called with the seconds up to which frames were decoded, once for each frame.

    Attributes:
        name: of the file in messages.
        width, height: of a decoded frame, before it is turned upright.
        duration: seconds as the file says, or None if it does not.
        end: seconds at which the last frame that was decoded ends.

    Raises:
        ImageError: it is no video that can be read; the message says what to do.
        OpenBlipError: PyAV is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tell: Callable[[str], None],
        reached: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.name = describe_source(path)
        self.end = Fraction(0)
        self._tell = tell
        self._reached = reached
        self._av = _pyav()
        self._damaged = 0
        self._file = _opened(path, self.name)
        try:
            self._container = self._open()
            self._stream = self._video_stream()
            self._check()
        except BaseException:
            self._file.close()
            raise
        self._context = self._stream.codec_context
        self._small = {kind: self._av.video.reformatter.VideoReformatter() for kind in ("gray", "rgb24")}

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def width(self) -> int:
        return int(self._context.width)

    @property
    def height(self) -> int:
        return int(self._context.height)

    @property
    def duration(self) -> float | None:
        known = self._own_duration()
        if known is None and self._container.duration is not None:
            known = Fraction(self._container.duration, self._av.time_base)
        return None if known is None or known <= 0 else float(known)

    def frames(self, wanted: Callable[[Fraction, Fraction | None], bool] | None = None) -> Iterator[VideoFrame]:
        """All frames, or at least those that are wanted, in the order in which they are shown.

        Frames are PyAV's own: keep few of them. Damaged places are passed over; what was wrong is raised at the end.

        Args:
            wanted: called with the time at which a frame is shown and that of the next one (None: not known), both
                in seconds since the first frame, in any order. Of the others those may be left out that the decoder
                can do without.

        Raises:
            ImageError: behind the last frame, if the file is damaged or cut short, or has no frame.
        """
        self._context.thread_type = "AUTO"
        clock = Clock(self._container, self._stream, self._av.time_base)
        held: list[Any] = []
        held_bytes = 0
        shape = Fraction(self._stream.sample_aspect_ratio or 1)
        fault = ""
        given = 0
        packets = self._packets()
        ahead: deque[Any] = deque()
        while True:
            try:
                while len(ahead) < AHEAD and (packet := next(packets, None)) is not None:
                    ahead.append(packet)
                    clock.add(packet)
            except (self._av.error.FFmpegError, OSError) as error:
                fault, packets = f"cannot be read further ({_reason(error)})", iter(())
            packet = ahead.popleft() if ahead else None
            due, unwanted = [packet], 0
            if wanted is not None and packet is not None:
                # What nobody wants is held back until a wanted frame needs it, or a key frame makes it needless.
                if packet.is_keyframe and begins_anew(packet, self._context, ahead):
                    held, held_bytes = [], 0
                span = clock.span(packet)
                is_wanted = span is None or wanted(*span)
                if not is_wanted:
                    held.append(packet)
                    held_bytes += packet.size
                if not is_wanted and held_bytes < MOST_HELD_BYTES and len(held) < MOST_HELD:
                    continue
                due = [*held, packet] if is_wanted else held
                held, held_bytes = [], 0
                unwanted = len(due) - is_wanted
            for raw in self._decoded(due, unwanted):
                time, end = clock.time(raw)
                if not given:
                    self._tell_about(raw)
                given += 1
                self.end = max(self.end, end)
                self._reached(float(self.end))
                yield VideoFrame(time, raw, shape)
            if due[-1] is None:
                break
        self._raise_fault(fault, given)

    def grey(self, frame: VideoFrame, width: int, height: int) -> np.ndarray[Any, Any]:
        """A frame in grey, each pixel the mean of an area: uint8 [height, width]. Not turned upright."""
        return self._made_small(frame, width, height, "gray")

    def colors(self, frame: VideoFrame, width: int, height: int) -> np.ndarray[Any, Any]:
        """As `grey`, in colour: uint8 [height, width, 3]."""
        return self._made_small(frame, width, height, "rgb24")

    def _made_small(self, frame: VideoFrame, width: int, height: int, kind: str) -> np.ndarray[Any, Any]:
        # One that is kept spares the decoder's scaler its preparations for each frame.
        scaler = self._small[kind]
        small = scaler.reformat(frame.raw, width=width, height=height, format=kind, interpolation="AREA")
        pixels: np.ndarray[Any, Any] = small.to_ndarray()
        return pixels

    def _open(self) -> Any:
        options = {"format_whitelist": ",".join((*CONTAINERS, *NO_VIDEO, *self._picture_formats()))}
        try:
            # The object, not the path: no protocol of FFmpeg's reads what somebody calls a path.
            return self._av.open(self._file, options=options, metadata_errors="replace")
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise ImageError(self.name, self._why_not(error)) from error

    def _picture_formats(self) -> list[str]:
        return [name for name in self._av.formats_available if name.endswith(PICTURE)]

    def _why_not(self, error: Exception) -> str:
        self._file.seek(0)
        head = self._file.read(64)
        if not head:
            return "is empty (0 bytes); copy or download it again"
        if head[4:8] in BOXES:
            return (
                "lacks its list of frames (moov): it was cut short, or is still being written; copy or download it "
                "again, or repair it with a tool for broken MP4 files"
            )
        if isinstance(error, (self._av.error.InvalidDataError, self._av.error.ArgumentError)):
            return "is not a video in a known format, or its beginning is damaged; pass an MP4, MKV, WebM or similar"
        return f"cannot be read as a video ({_reason(error)}); convert it to MP4 (H.264)"

    def _video_stream(self) -> Any:
        name = self._container.format.name
        if name.endswith(PICTURE):
            raise ImageError(self.name, "is a picture, not a video: use openblip caption; animations are read as GIF")
        streams = self._container.streams.video
        moving = [one for one in streams if not int(one.disposition) & ATTACHED_PICTURE]
        if not moving:
            what = "sound and a cover picture" if streams else "no pictures, only sound or other data"
            raise ImageError(self.name, f"holds {what}: pass a video")
        for other in self._container.streams:
            if other not in moving:
                other.discard = self._av.stream.Discard["all"]
        return max(moving, key=lambda one: _pixels(one.codec_context))

    def _check(self) -> None:
        context = self._stream.codec_context
        if context is None:
            raise ImageError(self.name, "has pictures in a format that this PyAV cannot decode; convert it to H.264")
        limit = pixel_limit()
        if _pixels(context) > limit:
            raise ImageError(
                self.name,
                f"has frames of {context.width} x {context.height} pixels, more than the limit of {limit}; make it "
                "smaller, or if you trust it raise OPENBLIP_MAX_PIXELS",
            )

    def _packets(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            if packet.size:  # PyAV ends with an empty one; AVI has empty ones where a frame stays
                yield packet

    def _decoded(self, packets: list[Any], unwanted: int) -> Iterator[Any]:
        """The frames that come out of the decoder for packets, of whose frames the first `unwanted` may be left out."""
        may_skip = self._context.name in SKIPPING_CODECS
        for index, packet in enumerate(packets):
            if may_skip:
                self._context.skip_frame = "NONREF" if index < unwanted else "DEFAULT"
            try:
                found = self._context.decode(packet)
            except self._av.error.EOFError:
                return
            except self._av.error.FFmpegError:
                self._damaged += 1
                continue
            for raw in found:
                if raw.is_corrupt:
                    self._damaged += 1
                else:
                    yield raw

    def _own_duration(self) -> Fraction | None:
        if self._stream.duration is None or self._stream.time_base is None:
            return None
        return Fraction(self._stream.duration) * Fraction(self._stream.time_base)

    def _tell_about(self, raw: Any) -> None:
        if raw.color_trc in (PQ, HLG):
            kind = "PQ" if raw.color_trc == PQ else "HLG"
            self._tell(
                f"{self.name} is an HDR video ({kind}), and its images are not tone-mapped: they look paler than in a "
                "player; convert it to SDR first if colours matter"
            )

    def _raise_fault(self, fault: str, given: int) -> None:
        if not given:
            raise ImageError(
                self.name,
                f"holds no picture that can be decoded{f': it {fault}' if fault else ''}; convert it to H.264",
            )
        at = clock_time(float(self.end))
        if fault:
            raise ImageError(self.name, f"{fault} behind {at}; what comes before was read")
        duration = self.duration
        if duration is not None and float(self.end) < duration - max(CUT_SHORT, duration / 100):
            missing = f"ends at {at}, but should last {clock_time(duration)}: it was cut short; what is there was read"
            if self._container.format.name.split(",")[0] in WHOLE_INDEX:
                raise ImageError(self.name, missing)
            # Where each stream does not say how long it is, the sound may go on behind the pictures.
            self._tell(f"{self.name}: its pictures end at {at} of {clock_time(duration)}: it may be cut short")
        if self._damaged:
            places = "a damaged place" if self._damaged == 1 else f"{self._damaged:,} damaged places"
            raise ImageError(self.name, f"has {places}, which were passed over; everything else was read")


def _pyav() -> Any:
    try:
        import av
        import av.video.reformatter
    except ImportError:
        raise OpenBlipError('videos are read with PyAV: pip install "openblip[video]"') from None
    return av


def _opened(path: str | os.PathLike[str], name: str) -> BinaryIO:
    """Raises ImageError."""
    if not isinstance(path, str | os.PathLike):
        raise ImageError(name, "is no path: videos are read from files")
    if is_address(os.fspath(path)):
        raise ImageError(name, "is a web address: download the video first")
    try:
        return open_file(path)
    except FileNotFoundError as error:
        raise ImageError(name, "does not exist; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(name, "is a folder; pass a video file") from error
    except NotAFileError as error:
        raise ImageError(name, f"is {error.kind}; pass a video file") from error
    except (OSError, ValueError) as error:
        raise ImageError(name, f"cannot be opened ({_reason(error)})") from error


def _pixels(context: Any) -> int:
    return 0 if context is None else int(context.width) * int(context.height)


def _reason(error: Exception) -> str:
    return printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def clock_time(seconds: float, digits: int = 0) -> str:
    """A time in a video as people read it: 0:01:05, or with a digit 0:01:05.3."""
    units = round(seconds * 10**digits)
    whole, rest = divmod(units, 10**digits)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" + (f".{rest:0{digits}}" if digits else "")
