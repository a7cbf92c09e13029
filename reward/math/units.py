"""Units of measure by name: whether two of them are the same one. No conversion: 5 m is not 500 cm."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

_NAMES = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
    "millimeter": "mm", "millimetre": "mm", "kilogram": "kg", "gram": "g", "second": "s", "sec": "s", "minute": "min",
    "hour": "h", "hr": "h", "hrs": "h", "mins": "min", "secs": "s", "lbs": "lb", "kilo": "kg",
    "inche": "inch", "in": "inch", "feet": "ft", "foot": "ft", "liter": "l", "litre": "l",
    "mile": "mi", "pound": "lb", "ounce": "oz", "dollar": "$", "usd": "$", "buck": "$", "cent": "¢", "unit": "",
    "watt": "w", "joule": "j", "euro": "€", "eur": "€", "gbp": "£", "yen": "¥", "jpy": "¥", "kilojoule": "kj",
    "newton": "n", "volt": "v", "yard": "yd", "year": "yr", "yrs": "yr", "day": "d", "degree": "°", "milliliter": "ml",
    "millilitre": "ml", "milligram": "mg", "kilowatt": "kw", "mole": "mol", "kelvin": "k", "amp": "a", "ampere": "a",
    "hertz": "hz", "pascal": "pa", "ohm": "ω", "radian": "rad", "rads": "rad", "microgram": "µg", "mcg": "µg",
}  # fmt: skip
_SPELLED_OUT = {
    "mph": "mi/h",
    "kph": "km/h",
    "kmph": "km/h",
    "kmh": "km/h",
    "fps": "ft/s",
    "bpm": "beat/min",
    "degf": "° fahrenheit",
    "degc": "° celsius",
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_TOKEN = re.compile(r"[^\W\d_]+|\^|/|-?\d+|[$¢°€£¥]")


def units_agree(gold: str, answer: str) -> bool:
    """One of them missing, or both the same: 5 m is not 5 km."""
    left, right = _factors(gold), _factors(answer)
    return not left or not right or left == right


@lru_cache(maxsize=1024)
def _factors(unit: str) -> frozenset[tuple[str, int]]:
    """A unit as its factors and their powers: kJ/mol and kJ mol^{-1}, square metres and m^2 are one."""
    tokens: list[str] = _TOKEN.findall(re.sub(r"[\s{}().*·]", " ", unit.casefold()))
    tokens = [part for token in tokens for part in _TOKEN.findall(_SPELLED_OUT.get(token, token))]
    powers: Counter[str] = Counter()
    sign, power, last = 1, 1, ""
    for token in tokens:
        if token in ("/", "per"):
            sign = -1
        elif token in _POWERS:
            power = _POWERS[token]
        elif token.lstrip("-").isdigit():
            powers[last] += sign * (int(token) - 1) if last else 0
        elif token != "^":
            last = _name(token)
            powers[last] += sign * power
            power = 1
    return frozenset((name, count) for name, count in powers.items() if name and count)


def _name(word: str) -> str:
    singular = word[:-1] if len(word) > 3 and word.endswith("s") else word
    return _NAMES.get(singular, _NAMES.get(word, singular))
