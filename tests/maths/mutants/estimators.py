"""Wrong KL estimators."""

from mutation import Mutant

FAMILY = "KL estimators"
TESTS = ["test_estimators.py"]
EST = "objectives.estimators"
MUTANTS = [
    Mutant(f"{EST}:reverse_kl_k2", ".detach()", "", "teacher trained"),
    Mutant(f"{EST}:forward_kl_k3", ".detach()", "", "teacher trained"),
    Mutant(f"{EST}:k1_value", ".detach()", "", "k1 not detached"),
    Mutant(
        f"{EST}:k1_value",
        "as_float(policy_logprobs) - as_float(teacher_logprobs)",
        "as_float(teacher_logprobs) - as_float(policy_logprobs)",
        "KL direction",
    ),
    Mutant(f"{EST}:reverse_kl_k2", ".square() / 2", "", "k1 as a loss"),
    Mutant(f"{EST}:reverse_kl_k2", ".square() / 2", ".square()", "factor 2"),
    Mutant(f"{EST}:reverse_kl_k2", ".square() / 2", ".abs()", "absolute log-ratio"),
    Mutant(
        f"{EST}:reverse_kl_k2",
        "as_float(policy_logprobs) - teacher",
        "as_float(policy_logprobs).detach() - teacher",
        "no gradient",
    ),
    Mutant(
        f"{EST}:forward_kl_k3",
        "(teacher - as_float(policy_logprobs))",
        "(as_float(policy_logprobs) - teacher)",
        "direction",
    ),
    Mutant(f"{EST}:forward_kl_k3", "expm1() - difference", "expm1()", "missing -R"),
    Mutant(f"{EST}:loss_estimator", "if estimator.loss is None:", "if False:", "k1 accepted"),
    Mutant(f"{EST}:loss_estimator", "name.strip().lower()", "name", "alias slips past"),
]
