#!/usr/bin/env python3
"""extract-vmlinux.py VMLINUZ OUT: the kernel's ELF out of a bzImage.

QEMU boots the ELF directly, which saves the (emulated) decompression.
"""
import lzma
import struct
import sys

image = open(sys.argv[1], "rb").read()
if image[0x202:0x206] != b"HdrS":
    sys.exit("not a bzImage: no HdrS signature")
setup_sectors = image[0x1F1] or 4
offset, length = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length
start = (setup_sectors + 1) * 512 + offset
payload = image[start:start + length]
if payload[:6] != b"\xfd7zXZ\x00":
    sys.exit("the kernel is not compressed by xz, as Debian's is")
# The last four bytes are the uncompressed size, no part of the xz stream.
vmlinux = lzma.LZMADecompressor().decompress(payload)
if vmlinux[:4] != b"\x7fELF":
    sys.exit("no ELF inside")
open(sys.argv[2], "wb").write(vmlinux)
