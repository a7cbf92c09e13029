"""What the suite has shown so far: proofs with their deviation, mutants with their fate."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

booking = True  # off while mutants run: what passes then proves nothing
proofs: dict[str, dict[str, float]] = defaultdict(dict)
mutants: dict[str, dict[str, bool]] = defaultdict(dict)
agreements: list[tuple[str, float, str]] = []  # subject, largest difference, why where it isn't rounding


def prove(family: str, subject: str, got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    """Assert that two tensors are equal to ``tolerance``, are not both nothing, and book the deviation."""
    assert got.shape == want.shape, f"{subject}: {list(got.shape)} against {list(want.shape)}"
    assert want.abs().max() > 1e3 * tolerance, f"{subject}: the expected value is zero, which would prove nothing"
    deviation = float((got.detach() - want.detach()).abs().max())
    assert deviation <= tolerance, f"{subject}: deviates by {deviation:.3g}, allowed {tolerance:.3g}"
    if booking:
        proofs[family][subject] = max(deviation, proofs[family].get(subject, 0.0))


def differ(first: Tensor, second: Tensor, at_least: float = 1e-3) -> None:
    """Assert that two tensors are clearly not the same."""
    assert float((first - second).detach().abs().max()) > at_least


def table() -> list[str]:
    """The figures, a family a line."""
    lines = [f"{'family':<20} {'proven':>7} {'max deviation':>14} {'mutants tried':>14} {'killed':>7}"]
    for family in sorted({*proofs, *mutants}):
        proven, tried = proofs[family], mutants[family]
        worst = f"{max(proven.values()):.1e}" if proven else "-"
        lines.append(f"{family:<20} {len(proven):>7} {worst:>14} {len(tried):>14} {sum(tried.values()):>7}")
    total = (
        sum(map(len, proofs.values())),
        sum(map(len, mutants.values())),
        sum(sum(m.values()) for m in mutants.values()),
    )
    lines.append(f"{'all':<20} {total[0]:>7} {'':>14} {total[1]:>14} {total[2]:>7}")
    if agreements:
        width = max(len(subject) for subject, _, _ in agreements)
        rounding = max((difference for _, difference, because in agreements if not because), default=0.0)
        lines += ["", f"{'against another implementation':<{width}} {'max difference':>14}  where not rounding"]
        lines += [f"{subject:<{width}} {difference:>14.1e}  {because}" for subject, difference, because in agreements]
        lines += [f"{len(agreements)} comparisons; where both claim the same, they differ by {rounding:.1e} at most"]
    return lines


def agree(subject: str, got: Tensor, other: Tensor, tolerance: float, because: str = "") -> None:
    """Book the largest difference to another library's number, and assert that it is within ``tolerance``."""
    difference = float((got.detach() - other.detach()).abs().max())
    if booking:
        agreements.append((subject, difference, because))
    assert difference <= tolerance, f"{subject}: differs by {difference:.3g}, allowed {tolerance:.3g}"
