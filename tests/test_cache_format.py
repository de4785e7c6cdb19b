"""Whoever changes how an exam is prepared must raise the cache's FORMAT, or caches of before would be used."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from mgkeras.data.cache import FORMAT

DATA = Path(__file__).resolve().parents[1] / "mgkeras" / "data"
MADE_BY = {  # what turns files into what is stored; None is the whole module
    "augment.py": ("turn", "stored_volumes"),
    "cache.py": ("exam_cube",),
    "phases.py": ("channels_of",),
    "tumour.py": None,
    "volume.py": (
        "oriented",
        "frame_of",
        "box_frame",
        "axis_weights",
        "along_axes",
        "to_cube",
        "_to_cube_weights",
        "mask_to_cube",
        "unit_of",
    ),
}
KNOWN = {  # FORMAT: digest of that code; the next number where a change alters voxels or the file
    2: "9de20ef733708e62",
}


class Bare(ast.NodeTransformer):
    """Takes out what computes nothing: docstrings and annotations."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns = None
        for argument in [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]:
            argument.annotation = None
        return node

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else node

    def visit_AnnAssign(self, node):
        return ast.Assign([node.target], node.value) if node.value else None

    def visit_Assert(self, node):
        return None


def plain(node):
    """The tree as nested lists: ast.unparse and ast.dump write the same code otherwise from Python to Python."""
    if isinstance(node, list):
        return [plain(child) for child in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [[name, plain(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, *fields]


def digest():
    text = []
    for name, wanted in MADE_BY.items():
        tree = ast.parse((DATA / name).read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for function in wanted or sorted(functions):
            text.append(repr(plain(Bare().visit(functions[function]))))
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def test_code_that_prepares_exams_changes_with_the_caches_format():
    assert FORMAT == max(KNOWN) and digest() == KNOWN[FORMAT], (
        "the code that prepares exams is not that of FORMAT in mgkeras/data/cache.py. Where the change alters voxels "
        f"or masks, raise FORMAT and add its digest to KNOWN; where it does not, replace the digest: {digest()!r}"
    )
