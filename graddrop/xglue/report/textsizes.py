"""How much text each language had in a model's pretraining."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graddrop.xglue.textfile import brief, read_json
from graddrop.xglue.training.pretrain_config import RESULT_FILE

# Conneau et al. 2020 (arXiv 1911.02116), the table of CC-100 in the appendix: GiB of text that
# XLM-R saw. The languages of XGLUE; zh is simplified Chinese.
CC100_GIB: Mapping[str, float] = {
    "en": 300.8,
    "ru": 278.0,
    "vi": 137.3,
    "th": 71.7,
    "de": 66.6,
    "bg": 57.5,
    "fr": 56.8,
    "es": 53.3,
    "pt": 49.1,
    "zh": 46.9,
    "el": 46.9,
    "pl": 44.6,
    "it": 30.2,
    "nl": 29.3,
    "ar": 28.0,
    "tr": 20.9,
    "hi": 20.2,
    "ur": 5.7,
    "sw": 1.6,
}

_XLMR = re.compile(r"(^|/)xlm-roberta-(base|large|xl|xxl)/?$", re.IGNORECASE)


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the pretraining texts.

    Args:
        by_language: Positive numbers.
        unit: Of the numbers.
        origin: Where they come from, as a part of a sentence.
    """

    by_language: Mapping[str, float]
    unit: str
    origin: str


def text_sizes(model: str, folder: Path, file: Path | None = None) -> TextSizes | None:
    """Find the sizes of a model's pretraining texts.

    Args:
        model: Name or folder, as the runs name it. A relative folder is looked for from here, then
            from each folder above that of the report, where the runs may have been started.
        folder: Folder of the report.
        file: JSON, `{language: number}`; it goes before what is known of the model.

    Returns:
        What the file says; what `graddrop pretrain` wrote beside the model; CC-100 for XLM-R; None
        for any other model.

    Raises:
        ValueError: If a file is not JSON, or a size no positive number.
        OSError: If a file cannot be read.
    """
    if file is not None:
        return TextSizes(
            _checked(file, read_json(file)), "unit of the file", f"the file {file.name}"
        )
    for place in (Path(), *folder.absolute().parents):
        record = place / model / RESULT_FILE
        if record.is_file():
            origin = "the record that graddrop pretrain wrote beside the model"
            return TextSizes(_checked(record, _bytes(read_json(record))), "bytes", origin)
    if _XLMR.search(model):
        origin = "the CC-100 table of the XLM-R paper (Conneau et al. 2020, arXiv 1911.02116)"
        return TextSizes(CC100_GIB, "GiB", origin)
    return None


def _bytes(record: object) -> object:
    return record.get("bytes") if isinstance(record, dict) else record


def _checked(file: Path, sizes: object) -> dict[str, float]:
    expected = "expected {language: positive number}"
    if not isinstance(sizes, dict) or not sizes:
        raise ValueError(f"{file}: {expected}, found {type(sizes).__name__}")
    for language, size in sizes.items():
        number = isinstance(size, int | float) and not isinstance(size, bool)
        if not number or not 0 < size <= sys.float_info.max:
            raise ValueError(f"{file}: {expected}, found {brief(size)} for {brief(language)}")
    return {language: float(size) for language, size in sizes.items()}
