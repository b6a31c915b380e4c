"""How a report names models, metrics and numbers; the names of `scores.json` stay beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CHANCE",
    "COMPARISONS",
    "FEW_SHOT_MODELS",
    "INTERVALS",
    "METRICS",
    "MODELS",
    "SUPPORTS",
    "ModelWords",
    "between",
    "interval",
    "mark",
    "metric_name",
    "model_words",
    "not_exported",
    "number",
    "percent",
    "signed",
    "vectors_see",
]


@dataclass(frozen=True)
class ModelWords:
    """``given``: what the model sees of a test patient; ``kind`` groups and colours the rows."""

    label: str
    kind: str  # "image", "table", "both" (what is judged) or "control" (what it is judged by)
    given: str
    about: str


_IMAGE = "image"
_TABLE = "table"
_BOTH = "image + table"

MASKS_WITH_GENES = "mgi_"  # what the ablations of the recipe that draws masks are called
CHANCE = "chance"  # the rows of `scores.json` that say what a guess gets

# The order is the order of the rows in every table and figure.
MODELS: dict[str, ModelWords] = {
    "aligned": ModelWords("aligned", "image", _IMAGE, "aligned with the table or the genes of training patients"),
    "image_only": ModelWords("image alone", "image", _IMAGE, "pre-trained on slices, never saw a table"),
    "supervised_mil": ModelWords("trained on the label", "image", _IMAGE, "attention trained on the label itself"),
    "embeddings": ModelWords("given vectors", "image", _IMAGE, "vectors of another encoder, as handed over"),
    "mgi": ModelWords("MGI", "both", "image + genes", "the image model with the genes fused in"),
    "vit_no_genes": ModelWords(
        "MGI without genes", "image", _IMAGE, "the same network and steps, only ever given the token for no genes"
    ),
    "unet": ModelWords("U-Net", "control", _IMAGE, "a plain U-Net from random weights, images alone"),
    "mgi_shuffled_genes": ModelWords(
        "MGI, shuffled genes", "control", "image + genes of others", "trained with other patients' genes"
    ),
    "mgi_null_genes": ModelWords("MGI, genes withheld", "control", _IMAGE, "MGI, given no genes at test"),
    "mgi_unaligned": ModelWords("MGI, not aligned", "both", "image + genes", "from ImageNet straight to masks"),
    "mgi_scratch": ModelWords("MGI from scratch", "both", "image + genes", "nothing learnt before alignment"),
    "mgi_pure_vit": ModelWords(
        "MGI, pure ViT", "both", "image + genes", "patches of 16 pixels in place of convolutions, from scratch"
    ),
    "mgi_gene_mlp": ModelWords("MGI, genes by MLP", "both", "image + genes", "an MLP reads the genes, not a Mamba"),
    "mgi_gene_transformer": ModelWords(
        "MGI, genes by Transformer", "both", "image + genes", "a Transformer reads the genes, not a Mamba"
    ),
    "mgi_film": ModelWords(
        "MGI with FiLM", "both", "image + genes", "genes scale and shift the image's tokens, no cross-attention"
    ),
    "mgi_scan_intensity": ModelWords(
        "MGI, scans equally bright", "both", "image + genes", "every scan shown at a brightness of its own"
    ),
    "mgi_slice_split": ModelWords(
        "MGI, split by slices",
        "control",
        "image + genes",
        "a leak on purpose: other slices of the patient were learnt from",
    ),
    "mgi_on_slice_split": ModelWords(
        "MGI on those slices",
        "control",
        "image + genes",
        "MGI split by patients, on the slices that the leak is judged on",
    ),
    "fused": ModelWords("table + aligned", "both", _BOTH, "the table and the score of the aligned image"),
    "fused_unaligned": ModelWords("table + image alone", "both", _BOTH, "the table and the score of the image alone"),
    "table_logistic": ModelWords("table alone", "table", _TABLE, "logistic regression on the clinical columns"),
    "table_cox": ModelWords("table alone, Cox", "table", _TABLE, "a Cox model of the clinical columns"),
    "table_boosting": ModelWords(
        "table, boosted trees", "table", _TABLE, "boosted trees on the clinical columns, which may act together"
    ),
    "genes_logistic": ModelWords("genes alone", "table", "genes", "logistic regression on the genes"),
    "aligned_genes": ModelWords("aligned genes", "table", "genes", "the gene side of the aligned space"),
    "aligned_both": ModelWords("aligned, both sides", "both", "image + genes", "both sides of the aligned space"),
    "imagenet_encoder": ModelWords("ImageNet encoder", "control", _IMAGE, "the starting point, not trained here"),
    "random_encoder": ModelWords("untrained encoder", "control", _IMAGE, "the same network with random weights"),
    "intensity_stats": ModelWords(
        "intensity statistics",
        "control",
        _IMAGE,
        "ten grey-value statistics and the number of slices, no network",
    ),
    "position_only": ModelWords("slice position", "control", "position", "where the slice lies in the stack"),
    "thumbnail_16": ModelWords("16-pixel thumbnail", "control", _IMAGE, "the slice shrunk to 16 x 16 pixels"),
    "attention_unaligned": ModelWords("random attention", "control", _IMAGE, "pre-trained, pooled by random attention"),
    "random_start": ModelWords("aligned, random start", "control", _IMAGE, "alignment from random heads"),
    "shuffled_pairs": ModelWords(
        "shuffled pairs", "control", _IMAGE, "aligned with the rows of other patients: must gain nothing"
    ),
    "permuted_labels": ModelWords(
        "permuted labels",
        "control",
        _IMAGE,
        "the probe refitted on shuffled labels: median and 95 % of the draws",
    ),
    CHANCE: ModelWords("chance", "control", "nothing", "a guess"),
}

METRICS = {
    "auroc": "AUROC",
    "auroc_z_adjusted": "AUROC, position-adjusted",
    "auprc": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "brier": "Brier score",
    "recall_at_k": "Recall at k",
    "median_rank": "Median rank",
    "c_index": "C-index",
    "c_index_uno": "C-index (Uno)",
    "dice_patient": "Dice per patient",
    "dice_patient_median": "Median Dice",
    "dice_patient_small": "Dice, small tumours",
    "dice_patient_large": "Dice, other tumours",
    "dice_patient_below_half": "Patients below 0.5",
    "iou_patient": "IoU per patient",
    "dice_slice": "Dice per slice",
    "dice_slice_empty_1": "Dice per slice, empty = 1",
    "hd95": "HD95",
    "hd95_median": "Median HD95",
    "nsd": "NSD",
}

SUPPORTS = {
    "aligned": (
        "Supports that were aligned",
        "alignment knew the supports' own table or genes, so part of a gain can be just that",
    ),
    "out_of_fold": (
        "Supports out of fold",
        "the same patients, embedded by alignments that did not see them",
    ),
    "unseen": ("Supports never seen", "patients that alignment never saw: the case of a new hospital"),
}

FEW_SHOT_MODELS = ("aligned", "image_only", "embeddings", "shuffled_pairs")  # more lines cannot be told apart

# Paired differences and the question that each one answers.
COMPARISONS = {
    "aligned - image_only": "Does alignment help when only the image is given?",
    "fused - table_logistic": "Does the aligned image add to the table?",
    "fused - fused_unaligned": "Beside the table, is it alignment or just the image?",
    "image_only - imagenet_encoder": "What did pre-training add to its start?",
    "aligned - shuffled_pairs": "Is it the patients' own rows that count?",
    "mgi - vit_no_genes": "Do genes help to segment?",
    "mgi - mgi_shuffled_genes": "Is it the patient's own genes that count?",
    "mgi - mgi_null_genes": "Does the trained model use the genes it is given?",
    "mgi - mgi_unaligned": "Does alignment help to segment?",
    "mgi - mgi_scratch": "Is it worth starting from ImageNet?",
    "mgi - mgi_pure_vit": "What are convolutions and their start from ImageNet worth together?",
    "mgi_scratch - mgi_pure_vit": "Are convolutions better than patches of 16 pixels, both from scratch?",
    "mgi - mgi_gene_mlp": "Are the genes better read by a Mamba than by an MLP?",
    "mgi - mgi_gene_transformer": "Are the genes better read by a Mamba than by a Transformer?",
    "mgi - mgi_film": "Is cross-attention to the genes better than FiLM?",
    "mgi - mgi_scan_intensity": "Is it better to leave every scan's brightness as it is?",
    "mgi - unet": "Is MGI better than a U-Net on images alone?",
    "mgi_shuffled_genes - vit_no_genes": "What do other patients' genes seem to add?",
    "mgi_null_genes - vit_no_genes": "What did training beside genes add, without them at test?",
    "vit_no_genes - unet": "Is the network without genes better than a U-Net?",
    "mgi_slice_split - mgi_on_slice_split": "What does it gain to have seen other slices of the test patients?",
}

# What every interval on the page leaves out; the figure is that of docs/soak.md.
INTERVALS = (
    "Intervals are 95 % over patients: they leave out what another training or other folds would change, and in "
    "simulations without a signal those of cross-validated probes held the truth in 87 %."
)


def model_words(name: str) -> ModelWords:
    """The words of a model, or of the difference of two; a model that is not known here is named by itself."""
    if " - " in name:
        return ModelWords(" − ".join(model_words(one).label for one in name.split(" - ", 1)), "control", "", "")
    return MODELS.get(name) or ModelWords(name.replace("_", " "), "image", _IMAGE, "")


def not_exported(selected: str | None, own: Sequence[str]) -> str:
    """One sentence where validation chose another model than those that a model folder holds; else empty.

    ``own``: what the folder holds, the recipe's own model first.
    """
    if selected is None or selected in own:
        return ""
    return f"The model folder holds the recipe's own model ({own[0]}); validation chose {selected}."


def vectors_see(name: str) -> str:
    """What the vectors of a model see of a test patient: of one that draws masks with genes, its image tower's."""
    return _IMAGE if name.startswith(MASKS_WITH_GENES) else model_words(name).given


def mark(place: int) -> str:
    """What a note is known by in its table: a to z, then aa, ab and so on."""
    letters = ""
    while place >= 0:
        place, letter = divmod(place, 26)
        letters, place = chr(ord("a") + letter) + letters, place - 1
    return letters


def metric_name(name: str) -> str:
    """The metric as a column head."""
    return METRICS.get(name, name.replace("_", " "))


def number(value: float | None, digits: int = 2) -> str:
    """A score with ``digits`` decimals and a true minus sign; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign; zero carries none."""
    if value is None:
        return "–"
    rounded = round(value, digits)
    if rounded == 0:
        return number(0.0, digits)
    return f"+{number(value, digits)}" if rounded > 0 else number(value, digits)


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval as [0.58, 0.83], or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def between(low: float | None, high: float | None) -> str:
    """The interval of a difference, both ends signed."""
    return "" if low is None or high is None else f"[{signed(low)}, {signed(high)}]"


def percent(share: float) -> str:
    """A share of 0 to 1 as "12 %"."""
    return f"{100 * share:.0f} %"
