"""Losses in closed form."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hz_train.losses import Weights, discriminator_loss, fake_loss, l1, real_loss, total  # noqa: E402


def test_least_squares():
    scores = torch.tensor([0.25, 0.75])
    assert float(real_loss(scores)) == pytest.approx((0.75**2 + 0.25**2) / 2)
    assert float(fake_loss(scores)) == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert float(discriminator_loss(torch.ones(4), torch.zeros(4))) == 0
    assert float(discriminator_loss(torch.zeros(4), torch.ones(4))) == 1


def test_the_papers_weights():
    paper = Weights()
    assert (paper.adversarial, paper.cycle, paper.identity, paper.restore) == (1, 10, 0.1, 0)
    one = torch.tensor(1.0)
    parts = {"adversarial_target": one, "cycle_source": one, "identity_target": one, "restore": one}
    assert float(total(parts, paper)) == pytest.approx(11.1)


def test_l1_is_taken_in_float32():
    a = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    assert l1(a, a * 0).dtype == torch.float32
