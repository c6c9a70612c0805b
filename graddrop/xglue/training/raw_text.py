"""Raw text to pretrain on: a file per language, the small ones repeated."""

from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

from graddrop.xglue.textfile import read_text


def read_texts(folder: Path) -> dict[str, list[str]]:
    """Read raw text.

    Args:
        folder: Folder with one `<language>.txt` per language.

    Returns:
        The lines that are not blank, by language in alphabetical order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one has no lines or is not UTF-8.
    """
    texts = {}
    for file in sorted(folder.glob("*.txt")):
        lines = read_text(file).replace("\r\n", "\n").split("\n")
        texts[file.stem] = [line for line in lines if line.strip()]
        if not texts[file.stem]:
            raise ValueError(f"{file}: expected a sentence per line, found none; remove the file")
    if not texts:
        raise FileNotFoundError(f"{folder}: expected files named <language>.txt, found none")
    return texts


def smoothed(texts: Mapping[str, list[str]], exponent: float) -> dict[str, list[str]]:
    """Repeat the lines of small languages, so that they are not drowned (XLM-R, section 3.1).

    Args:
        texts: Lines by language.
        exponent: a in (0, 1]; 1 leaves the sizes alone, towards 0 they become equal.

    Returns:
        n^a N^(1-a) lines of a language that has n, where N is that of the largest.
    """
    largest = max(map(len, texts.values()))
    return {
        language: list(
            islice(cycle(lines), round(len(lines) ** exponent * largest ** (1 - exponent)))
        )
        for language, lines in texts.items()
    }
