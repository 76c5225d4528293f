"""The networks of the slice system: parameter counts by hand, shapes, layers, and what they start from."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
from torch import nn  # noqa: E402

from hz_train.slice_cyclegan import SliceDiscriminator, SliceGenerator  # noqa: E402
from hz_train.slice_resnet import SliceResNet  # noqa: E402


def count(network) -> int:
    return sum(p.numel() for p in network.parameters())


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return inputs * outputs * kernel**2 + outputs * bias


@pytest.mark.parametrize("sites", [0, 3])
def test_generator_is_that_of_zhu_2017(sites: int) -> None:
    by_hand = conv(1 + sites, 64, 7) + conv(64, 128, 3) + conv(128, 256, 3) + 18 * conv(256, 256, 3)
    by_hand += conv(256, 128, 3) + conv(128, 64, 3) + conv(64, 1, 7)
    network = SliceGenerator(sites=sites)
    assert count(network) == by_hand
    assert sites or by_hand == 11_365_633
    layers = list(network.modules())
    assert sum(isinstance(x, nn.ReflectionPad2d) for x in layers) == 20  # first, last, two a block
    # every conv but the last is normed; with a condition the first is not, either
    assert sum(isinstance(x, nn.InstanceNorm2d) for x in layers) == 23 - (sites > 0)


def test_discriminator_is_the_patchgan_of_zhu_2017() -> None:
    network = SliceDiscriminator()
    by_hand = conv(1, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4) + conv(512, 1, 4)
    assert count(network) == by_hand == 2_762_689
    assert sum(isinstance(x, nn.InstanceNorm2d) for x in network.modules()) == 3


def test_a_score_sees_70_pixels() -> None:
    """The receptive field, read off the gradient. Norms would see the whole slice: they are taken out."""
    network = SliceDiscriminator(2)
    network.layers = nn.Sequential(*(x for x in network.layers if not isinstance(x, nn.InstanceNorm2d)))
    x = torch.rand(1, 1, 128, 128, requires_grad=True)
    network(x)[0, 0, 7, 7].backward()
    rows = torch.nonzero(x.grad[0, 0].abs().sum(1))
    assert int(rows.max() - rows.min()) + 1 == 70


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_do_not_depend_on_the_layout(batch: int) -> None:
    torch.manual_seed(1)
    network = SliceGenerator(4, 1)
    x = torch.rand(batch, 1, 32, 32)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout).zero_grad()
        network(x.contiguous(memory_format=layout)).square().mean().backward()
        found.append([p.grad.contiguous() for p in network.parameters()])
    # Biases before a norm have no gradient but for rounding.
    for plain, last in zip(*found, strict=True):
        assert float((plain - last).abs().max()) < 1e-4 * max(float(plain.abs().max()), 1e-2)


@pytest.mark.parametrize(("d", "h"), [(24, 24), (64, 48), (184, 220)])
def test_shapes(d: int, h: int) -> None:
    x = torch.rand(1, 1, d, h)
    with torch.no_grad():
        assert SliceDiscriminator(2)(x).shape == (1, 1, d // 8 - 2, h // 8 - 2)
        out = SliceGenerator(2, 1).eval()(x)
    assert out.shape == x.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_generator_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert float((SliceGenerator(8, 2)(x) - x).abs().mean()) < 0.02


def test_a_slices_output_does_not_depend_on_its_batch() -> None:
    network = SliceGenerator(4, 1).eval()
    x = torch.rand(3, 1, 24, 28)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(one[None]) for one in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (184, 220)])
def test_resnet_has_ten_convs_and_the_papers_head(shape: tuple[int, int]) -> None:
    channels = [1, 32, 64, 128, 256, 256]
    pairs = list(pairwise(channels))
    trunk = sum(conv(a, b, 3, False) + conv(b, b, 3, False) + 4 * b for a, b in pairs)  # a norm: 2 b
    trunk += sum(conv(a, b, 1, False) for a, b in pairs if a != b)
    head = 256 * (shape[0] // 32) * (shape[1] // 32) * 512 + 512 + 512 + 1
    network = SliceResNet(shape=shape)
    assert count(network) == trunk + head
    convs = [x for x in network.modules() if isinstance(x, nn.Conv2d)]
    assert sum(x.kernel_size == (3, 3) for x in convs) == 10
    assert [type(x) for x in network.head] == [nn.Flatten, nn.Linear, nn.Dropout, nn.ReLU, nn.Linear]
    assert network.head[2].p == 0.5


def test_resnet_answers_years_or_a_probability() -> None:
    x = torch.rand(2, 1, 40, 33)
    years = SliceResNet(2, shape=(40, 33))
    years.set_ages(torch.tensor([20.0, 40.0, 60.0]))
    with torch.no_grad():
        assert float((years.eval()(x) - 40).abs().max()) < 20  # untrained: near the mean age
        patients = SliceResNet(2, classify=True, shape=(40, 33))
        patients.head[-1].bias.fill_(2.0)
        patients.head[-1].weight.zero_()
        assert patients.eval()(x).flatten().tolist() == pytest.approx([1 / (1 + 2.718281828**-2)] * 2)
        assert patients.train()(x).flatten().tolist() == [2.0, 2.0]  # the logit


def test_a_slice_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="31 x 40"):
        SliceResNet(shape=(31, 40))
