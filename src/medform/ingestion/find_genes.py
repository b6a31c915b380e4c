"""Is there a file in the folder that looks like gene expression? For the draft of a cohort file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medform.errors import InputError
from medform.ingestion.cells import PLAIN
from medform.ingestion.expression_text import first_lines, split_line
from medform.ingestion.plan import Plan

__all__ = ["find_genes", "genes_section"]

NAMED = re.compile(r"expression|mrna|rna_?seq|genes?[._-]|fpkm|(^|[._-])tpm|rsem|htseq|star_gene", re.IGNORECASE)
ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".gct", ".gct.gz", ".h5ad")
FEWEST = 20
"""A matrix has at least this many columns of numbers."""


def find_genes(plan: Plan) -> str | None:
    """Path, below the images' folder, of the first file that looks like expression; None without one.

    That is one named like expression that holds a wide table of numbers (or is an ``.h5ad``).
    """
    for file in plan.files:
        name = Path(file.path).name
        named = file.kind == "other" and NAMED.search(name) and name.lower().endswith(ENDINGS)
        if named and (name.lower().endswith(".h5ad") or _is_wide(plan.root / file.path)):
            return file.path
    return None


def _is_wide(path: Path) -> bool:
    try:
        lines = first_lines(path, 4)
    except InputError:
        return False
    if len(lines) < 2:
        return False
    fields, _ = split_line(lines[-1])
    return sum(PLAIN.fullmatch(one) is not None for one in fields) >= FEWEST


def genes_section(path: str) -> str:
    """Commented keys for a found matrix: its scale is for a person to say."""
    return (
        f"# {path} looks like gene expression. Say what its numbers are, and remove the # here:\n"
        f"# genes: {{path: {json.dumps(path, ensure_ascii=False)}, scale: tpm}}"
        "        # scale: counts | tpm | log2p1 | log2 | zscore\n"
    )
