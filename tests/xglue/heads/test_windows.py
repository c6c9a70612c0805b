"""Laws of windows that cover long sequences, and of the special tokens around them."""

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra xglue")
pytest.importorskip("datasets", reason="needs the extra xglue")

from graddrop.xglue.heads.windows import Frame, windows


@pytest.mark.parametrize("room", [1, 2, 7, 32])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 31, 32, 33, 101])
def test_windows_cover_the_sequence_and_share_it_out(length: int, room: int) -> None:
    """No window is too long, none is needless, each position counts in exactly one of them."""
    for overlap in {0, room // 4, room - 1}:
        made = list(windows(length, room, overlap))
        assert all(window.end - window.start <= room for window in made)
        owned = [place for window in made for place in range(window.own_start, window.own_end)]
        assert owned == list(range(length))
        assert all(w.start <= w.own_start and w.own_end <= w.end for w in made)
        assert all(b.start == a.end - overlap for a, b in zip(made, made[1:], strict=False))
        assert len(made) == 1 or made[-2].end < length


@pytest.mark.parametrize(
    ("length", "room", "overlap"), [(101, 32, 8), (101, 32, 0), (200, 32, 31), (57, 7, 3)]
)
def test_positions_count_where_they_stand_further_from_a_cut(
    length: int, room: int, overlap: int
) -> None:
    """By one at most: an odd overlap has no middle. The ends of the sequence are no cuts."""
    made = list(windows(length, room, overlap))
    assert len(made) > 2

    def distance(window: Any, place: int) -> int:
        left = place - window.start if window.start else length
        right = window.end - 1 - place if window.end < length else length
        return min(left, right)

    for window in made:
        for place in range(window.own_start, window.own_end):
            others = [w for w in made if w.start <= place < w.end]
            assert distance(window, place) >= max(distance(w, place) for w in others) - 1


def test_a_frame_gives_what_the_tokenizer_gives(tokenizer: Any, xlmr: Any, bert_like: Any) -> None:
    """Special tokens and token types, for one segment and for two."""
    for each in (tokenizer, xlmr, bert_like):
        parts = [each(text, add_special_tokens=False)["input_ids"] for text in ("the fox", "dog")]
        for count, texts in ((1, ["the fox"]), (2, ["the fox", "dog"])):
            frame = Frame(each, count)
            features, begins = frame.assemble(*parts[:count])
            assert features == dict(each(*texts))
            assert frame.size == len(features["input_ids"]) - sum(map(len, parts[:count]))
            for begin, part in zip(begins, parts, strict=False):
                assert features["input_ids"][begin : begin + len(part)] == part
    assert "token_type_ids" not in Frame(tokenizer, 2).assemble([5], [6])[0]
    with pytest.raises(ValueError, match="max_length must be at least 6, 4 of them special"):
        Frame(tokenizer, 2).room(5)
