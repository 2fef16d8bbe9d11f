"""Puzzles: model solutions with one mistake planted in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from tinydiff.errors import InputError
from tinydiff.exercises.task import Task, learner_file, task


@dataclass(frozen=True)
class Puzzle:
    """A task whose solution has `wrong` in the place of `right`. hint: where to look, for those who ask."""

    number: int
    name: str
    right: str
    wrong: str
    hint: str

    @property
    def task(self) -> Task:
        return task(self.name)

    def file(self) -> str:
        """What a learner gets: the whole file, with the mistake."""
        head, name, body = self.task.source.partition("def backward")
        source = head + name + body.replace(self.right, self.wrong)
        intro = f"Puzzle {self.number}: one mistake is in `backward` below. Find it and mend it.\n\n"
        return learner_file(self.task, source, intro, False)


def _puzzles() -> tuple[Puzzle, ...]:
    planted = [
        ("chain_rule", "L_a = L_u * b + L_y", "L_a = L_u * b", "Along how many ways does a reach y?"),
        ("fully_connected", "L_b = L_Y.sum(axis=0)", "L_b = L_Y.mean(axis=0)", "What does forward do with b, and to which rows?"),
        ("broadcasting", "(L_Y * X**2).sum(axis=1, keepdims=True)", "(L_Y * X).sum(axis=1, keepdims=True)",
         "Which factor stands beside c in forward?"),
        ("relu", "L_s = np.where(positive, 0, L_y * x).sum()", "L_s = np.where(positive, L_y * x, 0).sum()",
         "For which elements does s change anything?"),
        ("embedding", "np.add.at(L_W, i, L_y)", "L_W[i] += L_y", "What becomes of a label that occurs twice?"),
        ("softmax_cross_entropy", "L_X = L * P / len(X)", "L_X = L * P / X.size", "A mean over what?"),
        ("layer_norm", "Z * (L_Z * Z).mean(axis=1, keepdims=True)) / s", "Z * (L_Y * Z).mean(axis=1, keepdims=True)) / s",
         "Three terms are subtracted from each other. Are all three made of the same gradient?"),
        ("batch_norm", "(L_Z - L_Z.mean(axis=0) - Z * (L_Z * Z).mean(axis=0)) / s", "(L_Z - Z * (L_Z * Z).mean(axis=0)) / s",
         "Through how many statistics does an element reach the others?"),
        ("max_pool", "L_X[:, i::2, j::2] = L_Y * (X[:, i::2, j::2] == Y)",
         "L_X[:, i::2, j::2] = L_Y * (X[:, i::2, j::2] >= Y.mean(axis=3, keepdims=True))", "Who gets the gradient, and who none?"),
        ("convolution", "L_X[:, r : r + H, s : s + V] += L_Y @ W[r, s].T", "L_X[:, r : r + H, s : s + V] = L_Y @ W[r, s].T",
         "In how many windows does a pixel lie?"),
        ("attention", "L_K = L_S.T @ Q * scale", "L_K = L_P.T @ Q * scale", "K is used in S. Which gradient arrives there?"),
        ("attention", "(P * L_P).sum(axis=1, keepdims=True)", "(P * L_P).sum(axis=0, keepdims=True)",
         "Along which axis do the elements of P depend on each other?"),
        ("recurrent", "L_a = (L_H[t] + L_h) * (1 - H[t] ** 2)", "L_a = L_H[t] * (1 - H[t] ** 2)", "Where does a state go to?"),
        ("recurrent", "L_U += before.T @ L_a", "L_U += H[t].T @ L_a", "What is multiplied by U?"),
        ("reparameterisation", "(np.exp(v) - 1) / 2", "(np.exp(v) - 1)", "Differentiate kl with respect to v once more."),
        ("diffusion_loss", "L_x0 = np.sqrt(a) * (L_p @ W.T)", "L_x0 = np.sqrt(1 - a) * (L_p @ W.T)", "How does x0 enter x_t?"),
    ]  # fmt: skip
    return tuple(Puzzle(number, *one) for number, one in enumerate(planted, 1))


PUZZLES = _puzzles()


def puzzle(number: str) -> Puzzle:
    """The puzzle of a number. InputError where there is none."""
    for one in PUZZLES:
        if number.strip() == str(one.number):
            return one
    raise InputError(f"there is no puzzle {number!r}; they are numbered 1 to {len(PUZZLES)}")
