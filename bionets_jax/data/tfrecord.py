"""Reads TFRecord files without TensorFlow.

A record is: length (uint64), masked CRC of the length (uint32), the data, masked CRC of the data
(uint32), all little-endian. The CRC of the length is checked, which finds every truncation and
every loss of position; the data's own CRC is not, as that is slow in Python.
"""

import os
import struct

_HEADER = struct.Struct("<QI")


def _crc_table():
  table = []
  for byte in range(256):
    crc = byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli, reflected
    table.append(crc)
  return tuple(table)


_TABLE = _crc_table()


def masked_crc32c(data):
  """Returns TFRecord's masked CRC-32C of some bytes."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path):
  """Yields the records of a TFRecord file, as bytes.

  Raises:
    ValueError: truncated or corrupt; the message holds the path and the offset.
  """
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    offset = 0
    while offset < size:
      header = file.read(_HEADER.size)
      if len(header) < _HEADER.size:
        raise ValueError(f"{path}: truncated in the record header at offset {offset}.")
      length, crc = _HEADER.unpack(header)
      if masked_crc32c(header[:8]) != crc:
        raise ValueError(
            f"{path}: corrupt record header at offset {offset} (its checksum does not match), or"
            " not a TFRecord file."
        )
      if offset + _HEADER.size + length + 4 > size:
        raise ValueError(
            f"{path}: truncated; the record at offset {offset} has {length} bytes, the file ends"
            f" at {size}."
        )
      yield file.read(length)
      file.read(4)
      offset += _HEADER.size + length + 4
