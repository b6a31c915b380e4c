"""Gene expression: a matrix of noise with one module of genes that follows the hidden severity.

With twins (two spots, of which one is the lesion) the module follows that choice instead.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from medform.synthetic.options import HospitalOptions
from medform.synthetic.planting import PlantedPatient
from medform.synthetic.randomness import generator

__all__ = ["GENES", "draw_expression", "planted_module", "write_genes"]

GENES = tuple(f"GENE{number:03d}" for number in range(1, 121))
MODULE_SIZE = 12


def planted_module(seed: int) -> tuple[str, ...]:
    """Names of the genes that carry the signal, in the order of the matrix."""
    chosen = generator(seed, "module").choice(len(GENES), MODULE_SIZE, replace=False)
    return tuple(GENES[index] for index in sorted(chosen))


def draw_expression(patients: list[PlantedPatient], seed: int, options: HospitalOptions) -> np.ndarray:
    """Log2 expression (patient, gene): every gene has its own mean and spread, the module follows severity.

    With twins it follows the lesion's place: +1 where it is the spot in front, -1 where it is that at the back. Two
    genes of the module correlate by the square of ``gene_signal``.
    """
    of_genes = generator(seed, "gene levels")
    mean, spread = of_genes.uniform(2, 10, len(GENES)), of_genes.uniform(0.5, 1.5, len(GENES))
    strength = options.strength("gene")
    in_module = np.isin(GENES, planted_module(seed))
    rows = []
    for patient in patients:
        noise = generator(seed, "expression", patient.patient_id).standard_normal(len(GENES))
        planted = strength * _hidden(patient) + np.sqrt(1 - strength**2) * noise
        rows.append(mean + spread * np.where(in_module, planted, noise))
    return np.array(rows).reshape(len(patients), len(GENES))


def _hidden(patient: PlantedPatient) -> float:
    """What the module of genes follows: mean 0 and variance 1 over patients, either way."""
    if patient.lesion_in_front is None:
        return patient.severity
    return 1.0 if patient.lesion_in_front else -1.0


def write_genes(patients: list[PlantedPatient], seed: int, options: HospitalOptions, path: Path) -> None:
    """``patient_id`` and one column a gene, commas, four decimals; who has no expression has no row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient_id", *GENES])
        for patient, values in zip(patients, draw_expression(patients, seed, options), strict=True):
            writer.writerow([patient.patient_id, *(f"{value:.4f}" for value in values)])
