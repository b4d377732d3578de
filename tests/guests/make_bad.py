#!/usr/bin/env python3
"""Makes ELF files that must be refused: make_bad.py KIND GOOD-PROGRAM OUTPUT, or make_bad.py --list."""

import struct
import sys

PAGE = 4096
PT_NULL, PT_LOAD = 0, 1
X, W, R = 1, 2, 4


class Elf:
    """An x86-64 ELF file whose header and program headers can be changed in place."""

    # place and struct format of the fields that are changed here
    HEADER = {"class": (4, "B"), "data": (5, "B"), "type": (16, "<H"),
              "machine": (18, "<H"), "entry": (24, "<Q"), "phoff": (32, "<Q"), "shoff": (40, "<Q"),
              "phentsize": (54, "<H"), "phnum": (56, "<H"), "shnum": (60, "<H")}
    PROGRAM = {"type": (0, "<I"), "flags": (4, "<I"), "offset": (8, "<Q"), "vaddr": (16, "<Q"),
               "filesz": (32, "<Q"), "memsz": (40, "<Q"), "align": (48, "<Q")}

    def __init__(self, data):
        self.data = bytearray(data)
        first = self.get("phoff")
        self.loads = [p for p in range(first, first + 56 * self.get("phnum"), 56)
                      if self.segment(p, "type") == PT_LOAD]

    def get(self, field):
        place, form = self.HEADER[field]
        return struct.unpack_from(form, self.data, place)[0]

    def set(self, field, value):
        place, form = self.HEADER[field]
        struct.pack_into(form, self.data, place, value)

    def segment(self, p, field, value=None):
        place, form = self.PROGRAM[field]
        if value is not None:
            struct.pack_into(form, self.data, p + place, value)
        return struct.unpack_from(form, self.data, p + place)[0]

    def with_flags(self, flags):
        return next(p for p in self.loads if self.segment(p, "flags") == flags)

    @property
    def code(self):
        return self.with_flags(R | X)

    @property
    def writable(self):
        return self.with_flags(R | W)

    def symbol(self, name):
        """Place of the symbol's entry in the file."""
        for i in range(self.get("shnum")):
            section = self.get("shoff") + 64 * i
            kind, = struct.unpack_from("<I", self.data, section + 4)
            if kind != 2:  # SHT_SYMTAB
                continue
            offset, size, link = struct.unpack_from("<QQI", self.data, section + 24)
            names, = struct.unpack_from("<Q", self.data, self.get("shoff") + 64 * link + 24)
            for entry in range(offset, offset + size, 24):
                at = names + struct.unpack_from("<I", self.data, entry)[0]
                if self.data[at:self.data.index(0, at)] == name:
                    return entry
        raise SystemExit(f"no symbol {name}")


def header(field, value):
    return lambda elf: elf.set(field, value)


def segment(which, field, value):
    return lambda elf: elf.segment(getattr(elf, which), field, value)


def cut(length):
    def change(elf):
        elf.data = elf.data[:length(elf)]
    return change


def replace(data):
    def change(elf):
        elf.data = bytearray(data)
    return change


def overlap(elf):
    """The writable segment on top of the code."""
    inside = elf.segment(elf.writable, "vaddr") % PAGE
    elf.segment(elf.writable, "vaddr", elf.segment(elf.code, "vaddr") + inside)


def no_load(elf):
    for p in elf.loads:
        elf.segment(p, "type", PT_NULL)


def symbol_at(value):
    def change(elf):
        struct.pack_into("<Q", elf.data, elf.symbol(b"my_backend") + 8, value)
    return change


KINDS = {
    # not this machine's, or no ELF at all
    "elf32": header("class", 1),
    "big-endian": header("data", 2),
    "aarch64": header("machine", 183),
    "i386": header("machine", 3),
    "relocatable": header("type", 1),
    "core": header("type", 4),
    "empty": replace(b""),
    "text": replace(b"This is no program.\n"),
    "script": replace(b"#!/bin/sh\necho Hello\n"),
    "magic-only": replace(b"\x7fELF"),
    "zeros": replace(bytes(8192)),
    # cut short
    "truncated-header": cut(lambda elf: 40),
    "truncated-program-headers": cut(lambda elf: 64 + 60),
    "truncated-half": cut(lambda elf: len(elf.data) // 2),
    # a header that lies
    "phoff-wild": header("phoff", 1 << 62),
    "phnum-huge": header("phnum", 0xfffe),
    "phnum-zero": header("phnum", 0),
    "phentsize": header("phentsize", 8),
    "shoff-wild": header("shoff", (1 << 64) - 64),
    "entry-outside": header("entry", 0x10000000),
    "entry-null": header("entry", 0),
    "entry-kernel": header("entry", 0xffffffff81000000),
    "entry-noncanonical": header("entry", 1 << 63),
    "entry-data": lambda elf: elf.set("entry", elf.segment(elf.writable, "vaddr")),
    # segments that can't be
    "wx": segment("code", "flags", R | W | X),
    "wx-data": segment("writable", "flags", R | W | X),
    "overlap": overlap,
    "no-load": no_load,
    "null-vaddr": segment("code", "vaddr", 0),
    "kernel-vaddr": segment("code", "vaddr", 0xffffffff81001000),
    "noncanonical-vaddr": segment("code", "vaddr", (1 << 63) + 0x1000),
    "wrap-vaddr": segment("writable", "vaddr", (1 << 64) - PAGE),
    "misaligned-vaddr": lambda elf: elf.segment(elf.code, "vaddr", elf.segment(elf.code, "vaddr") + 8),
    "memsz-huge": segment("writable", "memsz", 1 << 46),
    "memsz-wrap": segment("writable", "memsz", (1 << 64) - 1),
    "memsz-small": lambda elf: elf.segment(elf.code, "memsz", elf.segment(elf.code, "filesz") - 8),
    "offset-wild": segment("code", "offset", 1 << 40),
    "filesz-wild": lambda elf: [elf.segment(elf.code, f, 1 << 40) for f in ("filesz", "memsz")],
    # a my_backend that lies outside the program's code
    "symbol-null": symbol_at(0),
    "symbol-outside": symbol_at(0x10000000),
    "symbol-kernel": symbol_at(0xffffffff81000000),
}


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(KINDS))
        return
    kind, good, output = sys.argv[1:]
    with open(good, "rb") as file:
        elf = Elf(file.read())
    KINDS[kind](elf)
    with open(output, "wb") as file:
        file.write(elf.data)


main()
