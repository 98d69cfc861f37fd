"""KV cells as sets of sequences, the way llama.cpp keeps them: what the prefix cache's count is checked against."""

import json


class NaiveCells:
    def __init__(self):
        self.cells = []  # (position, token, sequences)

    def write(self, sequence, start, tokens):
        self.cells += [(start + i, token, {sequence}) for i, token in enumerate(tokens)]

    def copy(self, source, target, start, end):
        for position, _, sequences in self.cells:
            if source in sequences and start <= position < end:
                sequences.add(target)

    def remove(self, sequence, start=0, end=-1):
        for position, _, sequences in self.cells:
            if start <= position and (end == -1 or position < end):
                sequences.discard(sequence)
        self.cells = [cell for cell in self.cells if cell[2]]

    def state(self, sequence):
        held = sorted((position, token) for position, token, sequences in self.cells if sequence in sequences)
        return bytearray(json.dumps(held).encode())

    def restore(self, sequence, state):
        assert not any(sequence in sequences for _, _, sequences in self.cells)
        self.cells += [(position, token, {sequence}) for position, token in json.loads(state)]
        return True

    def tokens_of(self, sequence):
        held = sorted((position, token) for position, token, sequences in self.cells if sequence in sequences)
        assert [position for position, _ in held] == list(range(len(held)))
        return [token for _, token in held]
