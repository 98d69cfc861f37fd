"""KV cells as sets of sequences, the way llama.cpp keeps them: what the prefix cache's count is checked against."""


class NaiveCells:
    def __init__(self):
        self.cells = []  # (position, token, sequences)

    def write(self, sequence, start, tokens):
        self.cells += [(start + i, token, {sequence}) for i, token in enumerate(tokens)]

    def copy(self, source, target, start, end):
        for position, _, sequences in self.cells:
            if source in sequences and start <= position < end:
                sequences.add(target)

    def cut(self, sequence, start, end):
        for position, _, sequences in self.cells:
            if start <= position < end:
                sequences.discard(sequence)
        self.cells = [cell for cell in self.cells if cell[2]]

    def remove(self, sequence, start=0):
        self.cut(sequence, start, 1 << 30)

    def tokens_of(self, sequence):
        held = sorted((position, token) for position, token, sequences in self.cells if sequence in sequences)
        assert [position for position, _ in held] == list(range(len(held)))
        return [token for _, token in held]
