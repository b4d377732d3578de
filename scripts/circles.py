#!/usr/bin/env python3
"""Finds import circles between the files of a crate: scripts/circles.py SRC...

Two files that import each other, directly or by way of others, can only be read together. An import is a `use` or a
path that begins with `crate`, `super`, `self` or a module of the file's own; it counts for the file that has the item's
module. That a file declares another (`mod`) is no import, and what is compiled for tests only does not count.
"""

import pathlib
import re
import sys

COMMENT_OR_TEXT = re.compile(
    r"""//[^\n]*
      | /\*.*?\*/
      | \bb?c?r(?P<hash>\#*)".*?"(?P=hash)
      | "(?:\\.|[^"\\])*"
      | '(?:\\[^']*|[^'\\])'""",
    re.S | re.X,
)
TEST_ONLY = re.compile(r"#!?\[cfg\((?:all\()?test\b[^\]]*\]")
MODULE = re.compile(r"\bmod\s+(\w+)\s*;")
USE = re.compile(r"\buse\s+([^;]+);")
PATH = re.compile(r"(?<![\w:$])(?:r#)?\w+(?:::\w+)+")


def item_end(text, start):
    """The end of the item that begins at `start`: its `;`, or the brace that closes its first one."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "{[(":
            depth += 1
        elif text[at] in "}])":
            depth -= 1
            if depth == 0 and text[at] == "}" and not text[at + 1 :].lstrip().startswith(";"):
                return at + 1
        elif text[at] == ";" and depth == 0:
            return at + 1
    return len(text)


def read(path):
    """A file's code without comments and strings, and the modules that only tests have."""
    text = COMMENT_OR_TEXT.sub(" ", path.read_text())
    test_modules = set()
    while found := TEST_ONLY.search(text):
        end = item_end(text, found.end())
        test_modules.update(MODULE.findall(text[found.start() : end]))
        text = text[: found.start()] + text[end:]
    return re.sub(r"\bpub\s*\([^)]*\)", "pub", text), test_modules


def split(tree):
    """The paths of a `use` with its nested braces."""
    tree = tree.strip()
    opening = tree.find("{")
    if opening < 0:
        return [tree.split(" as ")[0].strip()]
    before, inside, depth, start, paths = tree[:opening], tree[opening + 1 : tree.rindex("}")], 0, 0, []
    for at, char in enumerate(inside + ","):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            if inside[start:at].strip():
                paths += [before + path for path in split(inside[start:at])]
            start = at + 1
    return paths


class Crate:
    """The files of a crate by their modules, without those that only tests have."""

    def __init__(self, source):
        self.modules = {}
        for root in ("lib.rs", "main.rs"):
            if (source / root).exists():
                self.add((), source / root, source)
                break
        else:
            sys.exit(f"{source}: neither lib.rs nor main.rs")

    def add(self, module, path, folder):
        text, _ = read(path)
        self.modules[module] = (path, text)
        for name in MODULE.findall(text):
            for child in (folder / f"{name}.rs", folder / name / "mod.rs"):
                if child.exists():
                    self.add((*module, name), child, folder / name)

    def target(self, module, path):
        """The module that a path written in `module` leads to; `None` if it leads out of the crate."""
        parts = [part.strip() for part in path.split("::")]
        if parts[0] == "crate":
            at = parts[1:]
        elif parts[0] in ("self", "super"):
            at, rest = list(module), parts
            while rest and rest[0] in ("self", "super"):
                at = at[:-1] if rest[0] == "super" else at
                rest = rest[1:]
            at += rest
        elif (*module, parts[0]) in self.modules:
            at = [*module, *parts]
        else:
            return None
        at = tuple(at)
        while at not in self.modules:
            at = at[:-1]
        return at

    def imports(self):
        """Each module with those it imports."""
        graph = {}
        for module, (_, text) in self.modules.items():
            paths = [path for tree in USE.findall(text) for path in split(tree)]
            paths += PATH.findall(USE.sub(" ", text))
            targets = {self.target(module, path) for path in paths}
            graph[module] = targets - {None, module}
        return graph


def circles(graph):
    """The sets of modules that all reach each other (Tarjan's strongly connected components)."""
    number, low, stack, found = {}, {}, [], []

    def visit(node):
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in graph[node]:
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(set(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in number:
            visit(node)
    return found


def main(sources):
    failed = False
    for source in map(pathlib.Path, sources):
        crate = Crate(source)
        graph = crate.imports()
        for circle in circles(graph):
            failed = True
            print(f"{source}: {len(circle)} files import each other in circles:")
            for module in sorted(circle):
                names = ", ".join(str(crate.modules[to][0].relative_to(source)) for to in sorted(graph[module] & circle))
                print(f"  {crate.modules[module][0].relative_to(source)} imports {names}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
