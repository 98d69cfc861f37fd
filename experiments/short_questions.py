"""200 short questions with one right answer each, of five kinds, of which a small model knows about half."""

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Question:
    """A prompt, and the text that a right answer contains."""

    #: capital, sum, product, sorting or symbol.
    kind: str
    prompt: str
    expected: str

    def is_answered_by(self, text: str) -> bool:
        """Whether the answer contains the expected text as whole words; case counts for chemical symbols only."""
        expected, given = _words(self.expected), _words(text)
        if self.kind != "symbol":
            expected, given = [word.lower() for word in expected], [word.lower() for word in given]
        return any(given[start : start + len(expected)] == expected for start in range(len(given)))


def questions() -> list[Question]:
    """All questions, the kinds in turn."""
    lines = (files("experiments") / "short_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Question(**json.loads(line)) for line in lines]


def _words(text: str) -> list[str]:
    """Runs of letters and digits."""
    return "".join(character if character.isalnum() else " " for character in text).split()
