"""The pass over the bytes of an expression matrix behind `expression_text.TextMatrix`, compiled by numba.

Its plain twin is `expression_text.parse_rows_plainly`. Importing this module compiles it, or reads the compiled
code from numba's cache; so it is imported where it is used. One thread runs one call.
"""

from __future__ import annotations

import numpy as np

from medform.kernel import compiled

__all__ = ["parse_rows"]

_BYTES = "Array(uint8, 1, 'C', readonly=True)"
_COUNTS = "Array(int64, 1, 'C', readonly=True)"
_NEWLINE, _RETURN, _SPACE, _QUOTE = 10, 13, 32, 34
_EXACT = 1 << 53
"""A mantissa below it and a power of ten up to 22 are exact doubles, so that one operation on them rounds
correctly (Clinger, PLDI 1990); other numbers are left to Python's own reader."""
_LARGEST = float(np.finfo(np.float32).max)
_POWERS = np.array([10.0**power for power in range(23)])


@compiled(f"UniTuple(int64, 2)({_BYTES}, int64, uint8)")
def _field_end(data: np.ndarray, start: int, separator: int) -> tuple[int, int]:
    """End of the field that begins at ``start``, and where its separator or line end stands."""
    place = start
    if data[place] == _QUOTE:
        place += 1
        while data[place] != _NEWLINE and not (data[place] == _QUOTE and data[place + 1] != _QUOTE):
            place += 2 if data[place] == _QUOTE else 1
    while data[place] != separator and data[place] != _NEWLINE:
        place += 1
    end = place
    if data[place] == _NEWLINE and end > start and data[end - 1] == _RETURN:
        end -= 1
    return end, place


@compiled(f"boolean({_BYTES}, int64, int64, {_BYTES}, {_COUNTS})")
def _is_missing(data: np.ndarray, start: int, end: int, words: np.ndarray, word_ends: np.ndarray) -> bool:
    """Whether the field, without blanks and quotes around it, is one of ``words`` (concatenated)."""
    while start < end and (data[start] == _SPACE or data[start] == _QUOTE):
        start += 1
    while end > start and (data[end - 1] == _SPACE or data[end - 1] == _QUOTE):
        end -= 1
    begin = 0
    for word_end in word_ends:
        if word_end - begin == end - start:
            same = True
            for place in range(end - start):
                if words[begin + place] != data[start + place]:
                    same = False
                    break
            if same:
                return True
        begin = word_end
    return False


@compiled(f"Tuple((float64, int64))({_BYTES}, int64, uint8)")
def _number(data: np.ndarray, place: int, point: int) -> tuple[float, int]:
    """The number at ``place`` and where it ends; the end is -1 where it is none, or none that is read exactly."""
    negative = data[place] == 45
    if negative or data[place] == 43:
        place += 1
    mantissa, digits, power = np.int64(0), 0, 0
    while data[place] - 48 <= 9 and data[place] >= 48:
        mantissa = mantissa * 10 + np.int64(data[place] - 48)
        digits += 1
        place += 1
    if data[place] == point:
        place += 1
        while data[place] - 48 <= 9 and data[place] >= 48:
            mantissa = mantissa * 10 + np.int64(data[place] - 48)
            digits += 1
            power -= 1
            place += 1
    if digits == 0 or digits > 18 or mantissa >= _EXACT:
        return 0.0, -1
    if data[place] == 101 or data[place] == 69:
        place += 1
        falling = data[place] == 45
        if falling or data[place] == 43:
            place += 1
        exponent, exponent_digits = 0, 0
        while data[place] - 48 <= 9 and data[place] >= 48 and exponent_digits < 4:
            exponent = exponent * 10 + np.int64(data[place] - 48)
            exponent_digits += 1
            place += 1
        if exponent_digits in (0, 4):
            return 0.0, -1
        power += -exponent if falling else exponent
    if power < -22 or power > 22:
        return 0.0, -1
    value = np.float64(mantissa)
    value = value / _POWERS[-power] if power < 0 else value * _POWERS[power]
    if value > _LARGEST:
        return 0.0, -1
    return (-value if negative else value), place


@compiled(
    f"UniTuple(int64, 4)({_BYTES}, int64, uint8, uint8, {_COUNTS}, {_BYTES}, {_COUNTS}, float32[:, ::1],"
    " int64[:, :, ::1], int64[:, ::1], int64[:, ::1])"
)
def parse_rows(
    data: np.ndarray,
    size: int,
    separator: int,
    point: int,
    roles: np.ndarray,
    words: np.ndarray,
    word_ends: np.ndarray,
    values: np.ndarray,
    texts: np.ndarray,
    shape: np.ndarray,
    odd: np.ndarray,
) -> tuple[int, int, int, int]:
    """Parse whole lines of ``data[:size]`` (which ends with a line end) until an output is full.

    ``roles`` (F,) says what each field of a row is: c >= 0, the number of column c of ``values`` (R, C); -1,
    nothing; -2 - t, text t, whose start and end go to ``texts`` (R, T, 2). ``shape`` (R, 2) gets the line of
    each row, counted from 0, and its number of fields. A cell that is neither a number nor one of the missing
    ``words`` goes to ``odd`` (K, 4) as row, field, start, end; K is at least F. Returns the rows parsed, the
    bytes and lines they take, and the odd cells.
    """
    place, line, row, odds = 0, 0, 0, 0
    while place < size and row < values.shape[0]:
        if data[place] == _NEWLINE or (data[place] == _RETURN and data[place + 1] == _NEWLINE):
            place += 1 if data[place] == _NEWLINE else 2
            line += 1
            continue
        line_start, odds_before, field = place, odds, 0
        while True:
            role = roles[field] if field < roles.shape[0] else -1
            start = place
            done = False
            if role >= 0:
                first = start
                while data[first] == _SPACE:
                    first += 1
                quoted = data[first] == _QUOTE
                value, end = _number(data, first + 1 if quoted else first, point)
                if end >= 0:
                    if quoted and data[end] == _QUOTE:
                        end += 1
                        quoted = False
                    while data[end] == _SPACE:
                        end += 1
                    if data[end] == _RETURN and data[end + 1] == _NEWLINE:
                        end += 1
                    if not quoted and (data[end] == separator or data[end] == _NEWLINE):
                        values[row, role] = np.float32(value)
                        place, done = end, True
            if not done:
                end, place = _field_end(data, start, separator)
                if role >= 0:
                    values[row, role] = np.nan
                    if not _is_missing(data, start, end, words, word_ends):
                        if odds == odd.shape[0]:
                            return row, line_start, line, odds_before
                        odd[odds, 0], odd[odds, 1], odd[odds, 2], odd[odds, 3] = row, field, start, end
                        odds += 1
                elif role <= -2:
                    texts[row, -2 - role, 0], texts[row, -2 - role, 1] = start, end
            field += 1
            if data[place] == _NEWLINE:
                place += 1
                break
            place += 1
        shape[row, 0], shape[row, 1] = line, field
        line += 1
        row += 1
    return row, place, line, odds
