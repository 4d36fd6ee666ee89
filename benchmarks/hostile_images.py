"""Hostile images: what a data set may hold that decodes to nothing, or to more than there is memory for."""

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from hostile_case import CANARY, Case
from hostile_weights import zipped
from PIL import Image

from bionets_jax.data.decode import decode


def _encoded(kind: str, side: int = 64, **options) -> bytes:
  pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
  return (
    struct.pack(">I", len(data))
    + kind
    + data
    + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
  )


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
  head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IEND", b"")


def _with(data: bytes, at: int, new: bytes) -> bytes:
  return data[:at] + new + data[at + len(new) :]


def _jpeg_of(height: int, width: int) -> bytes:
  """A JPEG of 64 x 64 pixels whose header says something else."""
  data = _encoded("JPEG")
  return _with(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def _tiff(width: int, height: int, offset: int = 8, length: int = 8) -> bytes:
  tags = [
    (256, 4, 1, width),
    (257, 4, 1, height),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, 1, offset),
    (277, 3, 1, 1),
    (278, 4, 1, height),
    (279, 4, 1, length),
  ]
  body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
  return b"II*\0" + struct.pack("<I", 16) + bytes(8) + body


def _images() -> dict[str, bytes]:
  jpeg, png, gif = _encoded("JPEG"), _encoded("PNG"), _encoded("GIF")
  webp, bmp, tiff = _encoded("WEBP", lossless=True), _encoded("BMP"), _encoded("TIFF")
  bomb = _chunk(b"IDAT", zlib.compress(bytes(1 + 3 * 60_000) * 100))
  found = {
    "no bytes": b"",
    "one byte": b"\xff",
    "text": b"an image",
    "a web page": b"<!DOCTYPE html><html></html>",
    "zeros": bytes(5000),
    "noise": np.random.default_rng(1).bytes(5000),
    "an archive": zipped([("a.png", png)]),
    "a script": b"#!/bin/sh\ntouch " + CANARY.encode(),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PostScript that runs a command": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(%pipe%touch " + CANARY.encode() + b") (w) file closefile showpage\n",
    "PDF": b"%PDF-1.4\n",
    "a pickle": b"\x80\x04cos\nsystem\n(X\x0c\0\0\0touch canarytR.",
    "PNG, 60,000 x 60,000": _png(60_000, 60_000, bomb),
    "PNG, 13,000 x 13,000": _png(13_000, 13_000, bomb),
    "PNG, 2^31 x 2^31": _png(2**31 - 1, 2**31 - 1, bomb),
    "PNG, no pixels": _png(0, 0),
    "PNG without data": _png(64, 64),
    "PNG, 3 bits": _png(8, 8, bomb, depth=3),
    "PNG, colour 9": _png(8, 8, bomb, colour=9),
    "PNG, damaged data": _png(64, 64, _chunk(b"IDAT", b"x" * 99)),
    "PNG, a wrong checksum": _with(png, 29, b"\0\0\0\0"),
    "PNG, nothing but its magic": png[:8],
    "PNG, a chunk of 2^31 bytes": png[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(50),
    "PNG, a text of 50 MB": _png(64, 64, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5 * 10**7), 1))),
    "JPEG, 65,500 x 65,500": _jpeg_of(65_500, 65_500),
    "JPEG, 0 x 0": _jpeg_of(0, 0),
    "JPEG, nothing but its magic": jpeg[:3],
    "JPEG without a scan": jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9",
    "JPEG without tables": b"\xff\xd8" + jpeg[jpeg.index(b"\xff\xc0") :],
    "JPEG, its header alone": jpeg[: jpeg.index(b"\xff\xda") + 14],
    "GIF, 60,000 x 60,000": _with(gif, 6, struct.pack("<HH", 60_000, 60_000)),
    "GIF without frames": gif[:13] + b";",
    "GIF cut off": gif[:20],
    "WebP cut off": webp[:30],
    "WebP, a length of 4 GB": _with(webp, 4, b"\xff\xff\xff\xff")[:40],
    "WebP, nothing but its magic": webp[:12],
    "BMP, 60,000 x 60,000": _with(bmp, 18, struct.pack("<ii", 60_000, 60_000)),
    "BMP cut off": bmp[:40],
    "BMP, a negative width": _with(bmp, 18, struct.pack("<i", -64)),
    "TIFF, 60,000 x 60,000": _tiff(60_000, 60_000),
    "TIFF, 2^32 x 2^32": _tiff(2**32 - 1, 2**32 - 1),
    "TIFF, data outside": _tiff(64, 64, offset=2**31, length=4096),
    "TIFF cut off": tiff[:50],
    "TIFF, tags outside": b"II*\0\xff\xff\xff\x7f",
    "PPM, 60,000 x 60,000": b"P6 60000 60000 255\n" + bytes(100),
    "PPM, a size of text": b"P6 x y 255\n",
    "PPM without data": b"P6 64 64 255\n",
    "PSD": b"8BPS\0\1" + bytes(100),
    "ICO": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0" + bytes(50),
    "FITS": b"SIMPLE  =" + b" " * 3000,
  }
  return found


def _read(data: bytes, channels: int) -> Callable:
  return functools.partial(decode, data, channels, "example 7")


def cases() -> list[Case]:
  """Read as the examples of a data set are, in colour and every other one in grey."""
  return [
    Case(
      f"images: {title}",
      lambda folder, random, data=data, channels=1 + 2 * (number % 2): _read(data, channels),
      "example 7: not a readable image",
    )
    for number, (title, data) in enumerate(_images().items())
  ]
