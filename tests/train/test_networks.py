"""The published networks: parameter counts, shapes, and layers as the paper states them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from hz_train.age_cnn import AgeCNN  # noqa: E402
from hz_train.padded_conv import PaddedConv3d  # noqa: E402
from hz_train.volume_cyclegan import Discriminator, Generator  # noqa: E402


def count(network):
    return sum(p.numel() for p in network.parameters())


def conv(inputs, outputs, kernel=3):
    """Parameters of one conv with bias, by hand."""
    return inputs * outputs * kernel**3 + outputs


def test_generator_has_the_papers_parameters():
    by_hand = conv(1, 32) + conv(32, 64) + conv(64, 128) + 10 * conv(128, 128)
    by_hand += conv(256, 64) + conv(128, 32) + conv(33, 1)
    assert count(Generator()) == by_hand == 5_256_476


def test_discriminator_has_the_papers_parameters_and_output():
    by_hand = conv(1, 32, 4) + conv(32, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 1, 4)
    network = Discriminator()
    assert count(network) == by_hand
    assert round(by_hand / 1e6, 2) == 2.77
    with torch.no_grad():
        scores = network(torch.rand(2, 1, 64, 64, 64))
    assert scores.shape == (2, 1, 6, 6, 6)
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_discriminator_norms_all_but_the_first_and_is_not_leaky():
    layers = list(Discriminator().layers)
    for layer, kind in zip(layers[:3], (nn.Conv3d, nn.ReLU, nn.Conv3d), strict=True):
        assert isinstance(layer, kind)
    assert sum(isinstance(x, nn.InstanceNorm3d) for x in layers) == 4
    assert sum(isinstance(x, nn.Conv3d) for x in layers) == 5
    assert not any(isinstance(x, nn.LeakyReLU) for x in layers)


@pytest.mark.parametrize("size", [32, 64])
def test_discriminator_gradients_in_bfloat16_are_those_of_float32(size):
    """Of every layer, on the smallest volume too, where the last kernel is larger than what it reads."""
    torch.manual_seed(3)
    network = Discriminator(width=8)
    volume = torch.rand(1, 1, size, size, size)
    found = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled):
            scores = network(volume).float()
        (scores - torch.linspace(0, 1, scores.numel()).reshape(scores.shape)).square().mean().backward()
        found.append([p.grad.flatten() for p in network.parameters() if p.dim() > 1])
    for exact, rounded in zip(*found, strict=True):
        assert float(nn.functional.cosine_similarity(exact, rounded, dim=0)) > 0.95
        assert float(rounded.norm() / exact.norm()) == pytest.approx(1, abs=0.1)


def test_age_gradients_in_bfloat16_are_those_of_float32():
    """On the smallest grid, whose last convs read 2^3 voxels."""
    torch.manual_seed(3)
    network = AgeCNN(width=8, grid=(16, 16, 16))
    volume, found = torch.rand(2, 1, 16, 16, 16), []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled):
            network(volume).float().square().mean().backward()
        found.append([p.grad.flatten() for p in network.features.parameters() if p.dim() > 1])
    for exact, rounded in zip(*found, strict=True):
        assert float(nn.functional.cosine_similarity(exact, rounded, dim=0)) > 0.9


def test_generator_keeps_shape_and_range():
    network = Generator(width=4).eval()
    with torch.no_grad():
        out = network(torch.rand(2, 1, 32, 32, 32))
    assert out.shape == (2, 1, 32, 32, 32)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_generator_starts_near_the_identity():
    torch.manual_seed(0)
    volume = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert float((Generator(width=8)(volume) - volume).abs().mean()) < 0.02


def test_a_volumes_output_does_not_depend_on_its_batch():
    network = Generator(width=4).eval()
    volumes = torch.rand(3, 1, 16, 16, 16)
    with torch.no_grad():
        together, alone = network(volumes), torch.cat([network(v[None]) for v in volumes])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_age_network_is_five_convs_three_pools_two_linears():
    layers = list(AgeCNN().modules())
    convs = [x for x in layers if isinstance(x, nn.Conv3d)]
    assert [c.out_channels for c in convs] == [32, 64, 128, 256, 256]
    assert sum(isinstance(x, nn.MaxPool3d) for x in layers) == 3
    assert sum(isinstance(x, nn.BatchNorm3d) for x in layers) == 5
    assert sum(isinstance(x, nn.Linear) for x in layers) == 2
    assert sum(isinstance(x, nn.LeakyReLU) for x in layers) == 6


def test_untrained_age_network_answers_near_the_mean_age():
    network = AgeCNN(width=4)
    network.set_ages(torch.tensor([20.0, 40.0, 60.0]))
    with torch.no_grad():
        years = network.eval()(torch.rand(2, 1, 64, 64, 64))
    assert years.shape == (2, 1)
    assert float((years - 40).abs().max()) < 20


@pytest.mark.parametrize(("device", "padded"), [("cpu", 1), ("meta", 0)])
def test_small_volumes_are_padded_by_hand_on_a_cpu_alone(monkeypatch, device, padded):
    calls = []
    pad = nn.functional.pad
    monkeypatch.setattr(nn.functional, "pad", lambda *given: calls.append(given) or pad(*given))
    made = PaddedConv3d(1, 1, 4, padding=1, device=device)(torch.empty(1, 1, 3, 3, 3, device=device))
    assert made.shape == (1, 1, 2, 2, 2)
    assert len(calls) == padded
