"""Image files written byte by byte from the definitions of their formats, for depths that Pillow does not write."""

import struct
import zlib

import numpy as np

TIFF_TYPES = {"B": 1, "H": 3, "I": 4, "f": 11}  # struct's letter to TIFF's type


def png(values: np.ndarray, bits: int, colour: int, chunks: tuple = ()) -> bytes:
    """Return a PNG of samples (h, w) or (h, w, c): colour 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    height, width = values.shape[:2]
    if bits < 8:
        binary = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        rows = np.packbits(binary.reshape(height, -1), axis=1)
    else:
        rows = values.astype(f">u{bits // 8}").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def tiff(
    values: np.ndarray, photometric: int = 1, order: str = "<", bits: int | None = None, tags=()
) -> bytes:
    """Return an uncompressed TIFF of samples (h, w) or (h, w, c).

    Args:
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 8 CIELAB.
        order: < or >, the byte order.
        bits: BitsPerSample, that of the array when None; below 8, or 12, are packed.
        tags: More tags: (number, letter of struct, values).
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    size = bits or values.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    if bits and bits % 8:
        binary = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=2)[
            ..., 16 - bits :
        ]
        data = np.packbits(binary.reshape(height, -1), axis=1).tobytes()
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = [(256, "I", [width]), (257, "I", [height]), (258, "H", [size] * channels), (259, "H", [1])]
    entries += [(262, "H", [photometric]), (273, "I", [8]), (277, "H", [channels]), (278, "I", [height])]
    entries += [(279, "I", [len(data)]), (339, "H", [kind] * channels), *tags]
    data += b"\0" * (len(data) % 2)
    extra_at, extra, table = 8 + len(data) + 2 + 12 * len(entries) + 4, b"", b""
    for number, letter, content in sorted(entries):
        packed = struct.pack(f"{order}{len(content)}{letter}", *content)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + packed
        table += struct.pack(f"{order}HHI", number, TIFF_TYPES[letter], len(content)) + packed.ljust(4, b"\0")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + extra


def pnm(values: np.ndarray, most: int, plain: bool = False) -> bytes:
    """Return a PGM or PPM whose white is ``most``."""
    height, width = values.shape[:2]
    magic = {(2, True): 2, (3, True): 3, (2, False): 5, (3, False): 6}[values.ndim, plain]
    if plain:
        data = " ".join(map(str, values.ravel().tolist())).encode()
    else:
        data = values.astype(">u2" if most > 255 else "u1").tobytes()
    return f"P{magic}\n{width} {height}\n{most}\n".encode() + data


def pfm(values: np.ndarray, order: str) -> bytes:
    height, width = values.shape
    head = f"Pf\n{width} {height}\n{'-1.0' if order == '<' else '1.0'}\n".encode()
    return head + values[::-1].astype(f"{order}f4").tobytes()  # the lowest row is first
