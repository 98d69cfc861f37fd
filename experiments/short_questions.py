"""Short questions with one right answer each, of five kinds, of which a small model knows half. Seeded."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

#: Countries whose capital is not simply their largest city's name.
CAPITALS = {
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Brazil": "Brasilia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "Colombia": "Bogota",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Kazakhstan": "Astana",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Morocco": "Rabat",
    "Myanmar": "Naypyidaw",
    "Nepal": "Kathmandu",
    "New Zealand": "Wellington",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Pakistan": "Islamabad",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Romania": "Bucharest",
    "Senegal": "Dakar",
    "Switzerland": "Bern",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Vietnam": "Hanoi",
}
#: Chemical elements and their symbols.
SYMBOLS = {
    "aluminium": "Al",
    "antimony": "Sb",
    "argon": "Ar",
    "arsenic": "As",
    "barium": "Ba",
    "bismuth": "Bi",
    "boron": "B",
    "bromine": "Br",
    "calcium": "Ca",
    "carbon": "C",
    "chlorine": "Cl",
    "cobalt": "Co",
    "copper": "Cu",
    "gold": "Au",
    "helium": "He",
    "iodine": "I",
    "iron": "Fe",
    "lead": "Pb",
    "lithium": "Li",
    "magnesium": "Mg",
    "manganese": "Mn",
    "mercury": "Hg",
    "neon": "Ne",
    "nickel": "Ni",
    "nitrogen": "N",
    "oxygen": "O",
    "phosphorus": "P",
    "platinum": "Pt",
    "potassium": "K",
    "radium": "Ra",
    "selenium": "Se",
    "silicon": "Si",
    "silver": "Ag",
    "sodium": "Na",
    "sulfur": "S",
    "tin": "Sn",
    "tungsten": "W",
    "uranium": "U",
    "xenon": "Xe",
    "zinc": "Zn",
}
#: Questions of each kind.
NUM_EACH = 40
SEED = 11


@dataclass(frozen=True)
class Question:
    """A prompt, and the text that a right answer contains."""

    kind: str
    prompt: str
    expected: str

    def is_answered_by(self, text: str) -> bool:
        """Whether the answer holds what is expected, as words of its own; case counts for symbols alone."""
        wanted = _words(self.expected)
        given = _words(text)
        if self.kind != "symbol":
            wanted, given = [word.lower() for word in wanted], [word.lower() for word in given]
        return any(given[start : start + len(wanted)] == wanted for start in range(len(given)))


def questions() -> list[Question]:
    """All of them, kinds in turn; the same at each call."""
    draw = random.Random(SEED)
    kinds = [list(kind) for kind in (_capitals(), _sums(draw), _products(draw), _sorted(draw), _symbols())]
    return [kind[place] for place in range(NUM_EACH) for kind in kinds]


def _words(text: str) -> list[str]:
    """Runs of letters and digits; commas between digits are left out of numbers."""
    kept = "".join(character if character.isalnum() else " " for character in text.replace(",", " "))
    return kept.split()


def _capitals() -> Iterator[Question]:
    for country, capital in CAPITALS.items():
        yield Question("capital", f"What is the capital of {country}? Answer with the name alone.", capital)


def _symbols() -> Iterator[Question]:
    for element, symbol in SYMBOLS.items():
        yield Question("symbol", f"What is the chemical symbol of {element}? Answer with the symbol alone.", symbol)


def _sums(draw: random.Random) -> Iterator[Question]:
    for _ in range(NUM_EACH):
        one, other = draw.randint(12, 999), draw.randint(12, 999)
        yield Question("sum", f"What is {one} + {other}? Answer with the number alone.", str(one + other))


def _products(draw: random.Random) -> Iterator[Question]:
    for _ in range(NUM_EACH):
        one, other = draw.randint(3, 30), draw.randint(3, 30)
        yield Question("product", f"What is {one} * {other}? Answer with the number alone.", str(one * other))


def _sorted(draw: random.Random) -> Iterator[Question]:
    for _ in range(NUM_EACH):
        numbers = draw.sample(range(1, 100), 4)
        given = ", ".join(map(str, numbers))
        expected = ", ".join(map(str, sorted(numbers)))
        yield Question("sorting", f"Sort these numbers in ascending order: {given}. Answer with them alone.", expected)
