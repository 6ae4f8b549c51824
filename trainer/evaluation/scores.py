"""What scored responses to problems come to: means with standard errors, pass@k and majority voting."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workers.reward.answers import last_boxed, quick_verdict
from workers.reward.notation import normalize_answer


def mean_and_error(values: Float[Tensor, "problem sample"]) -> tuple[float | None, float | None]:
    """The mean over all responses and its standard error, where NaN stands for no value.

    The problems are the clusters: responses to one problem are alike, problems are drawn one by one. With n problems, the
    error is sqrt(n / (n - 1) sum_i (sum_j (x_ij - mean))^2) / (number of values), which for whole rows is the standard
    deviation of the problems' means over sqrt(n) (Cochran 1977, "Sampling techniques", equation 2.39).

    Returns:
        None for the mean without a value, and for the error with fewer than two problems.
    """
    known = ~values.isnan()
    count, problems = int(known.sum()), int(known.any(dim=1).sum())
    if count == 0:
        return None, None
    numbers = torch.where(known, values.double(), 0.0)
    mean = numbers.sum() / count
    if problems < 2:
        return mean.item(), None
    of_problem = torch.where(known, numbers - mean, 0.0).sum(dim=1)
    error = (of_problem.square().sum() * problems / (problems - 1)).sqrt() / count
    return mean.item(), error.item()


def pass_at_k(correct: Bool[Tensor, "problem sample"], k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k), mean over problems (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args:
        correct: which responses are right.
        k: at most the number of samples n.
    """
    samples = correct.shape[1]
    wrong = samples - correct.sum(dim=1, dtype=torch.float64)
    # C(n - c, k) / C(n, k) is the product over i < k of (n - c - i) / (n - i); a factor at or below 0 makes it 0.
    drawn = torch.arange(k, dtype=torch.float64)
    none_right = ((wrong[:, None] - drawn).clamp(min=0) / (samples - drawn)).prod(dim=1)
    return (1 - none_right).mean().item()


def powers_up_to(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return powers if powers[-1] == samples else [*powers, samples]


def final_answer(text: str) -> str | None:
    r"""What a response votes for: the content of its last ``\boxed{}``; None where it has no answer."""
    return last_boxed(text) or None


def majority_chance(correct: Sequence[bool], answers: Sequence[str | None]) -> float:
    """The chance that the most frequent answer to a problem is right (Wang et al. 2022, arXiv 2203.11171).

    A tie is broken by lot: the chance is the share of right responses among those with a most frequent answer. Without any
    answer it is 0.

    Args:
        correct: whether each response is right.
        answers: of each response; None does not vote.
    """
    classes = equal_answers(answers)
    most = max(map(len, classes), default=0)
    chosen = [number for members in classes if len(members) == most for number in members]
    return sum(correct[number] for number in chosen) / len(chosen) if chosen else 0.0


def equal_answers(answers: Sequence[str | None]) -> list[list[int]]:
    """The numbers of the answers in classes of equal ones; None is in no class.

    Equal is what the first tier of the reward for math finds so: spelling, numbers, units. Answers that only algebra
    shows to be equal stand in two classes.
    """
    of_spelling: dict[str, list[int]] = {}
    for number, answer in enumerate(answers):
        if answer is not None:
            of_spelling.setdefault(normalize_answer(answer), []).append(number)
    classes: dict[str, list[int]] = {}
    for members in of_spelling.values():
        answer = str(answers[members[0]])
        equal = next((other for other in classes if quick_verdict(other, answer) is True), answer)
        classes.setdefault(equal, []).extend(members)
    return list(classes.values())
