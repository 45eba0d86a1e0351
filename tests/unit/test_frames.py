"""Noise around frames never becomes a reply, in whatever pieces it arrives."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.devices.transports.base import LONGEST_HEADER, Frames
from edgeprune.devices.validate import printable
from edgeprune.errors import DeviceError

NONCE = "0123456789abcdef" * 2


def frame(document: object, nonce: str = NONCE) -> bytes:
    payload = json.dumps(document).encode()
    return b"\nedgeprune %s %d %08x\n" % (nonce.encode(), len(payload), zlib.crc32(payload)) + payload


def read(data: bytes, size: int) -> list[object]:
    frames = Frames(NONCE)
    return [reply for at in range(0, len(data), size) for reply in frames.feed(data[at : at + size])]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.integers())), st.integers(1, 64), st.binary(max_size=300))
def test_frames_are_read_through_noise_in_any_pieces(parts: list[tuple[bytes, int]], size: int, tail: bytes) -> None:
    data = b"".join(noise + frame({"n": number}) for noise, number in parts) + tail
    assert read(data, size) == [{"n": number} for _, number in parts]


def test_another_nonce_is_noise() -> None:
    assert read(frame({"n": 1}, "f" * 32) + frame({"n": 2}), 7) == [{"n": 2}]


def test_a_damaged_frame_is_refused() -> None:
    good = bytearray(frame({"n": 1}))
    good[-2] ^= 1
    with pytest.raises(DeviceError, match="damaged"):
        read(bytes(good), 16)


def test_a_reply_that_announces_too_much_is_refused_before_it_is_read() -> None:
    with pytest.raises(DeviceError, match="over the cap"):
        list(Frames(NONCE, cap=100).feed(b"edgeprune " + NONCE.encode() + b" 9999999999 00000000\n"))


def test_endless_noise_does_not_fill_memory() -> None:
    frames = Frames(NONCE)
    for _ in range(100):
        assert list(frames.feed(b"x" * 100_000)) == []
    assert len(frames._buffer) <= LONGEST_HEADER


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "{", "[1]", '{"a": NaN}'])
def test_a_reply_that_is_no_json_object_is_refused(text: str) -> None:
    payload = text.encode()
    data = b"edgeprune %s %d %08x\n" % (NONCE.encode(), len(payload), zlib.crc32(payload)) + payload
    with pytest.raises(DeviceError):
        read(data, 1000)


def test_text_from_a_device_cannot_reach_the_terminal_raw() -> None:
    shown = printable("\x1b[2J\rroot\n" + "x" * 10_000)
    assert shown.isprintable() and len(shown) <= 2001 and "\\x1b" in shown
