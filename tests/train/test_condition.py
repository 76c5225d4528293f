"""The one-hot condition: its planes in closed form, and that no norm takes it out again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
from torch import nn  # noqa: E402

from hz_train.condition import one_hot, with_planes  # noqa: E402
from hz_train.slice_cyclegan import SliceGenerator  # noqa: E402
from hz_train.volume_cyclegan import Generator  # noqa: E402

MAKERS = {
    "slices": (lambda: SliceGenerator(4, 1, sites=3), (24, 24)),
    "volumes": (lambda: Generator(4, sites=3), (16, 16, 16)),
}


def test_one_hot() -> None:
    assert one_hot(["b", "a", "b"], ["a", "b", "c"]).tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="'x' is not in list"):
        one_hot(["x"], ["a"])


@pytest.mark.parametrize("space", [(2, 3), (2, 3, 4)])
def test_planes_are_constant_and_behind_the_image(space: tuple[int, ...]) -> None:
    images, condition = torch.rand(2, 1, *space), torch.eye(3)[[2, 0]]
    joined = with_planes(images, condition)
    assert joined.shape == (2, 4, *space)
    assert torch.equal(joined[:, :1], images)
    for n, k in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        assert torch.equal(joined[n, 1 + k], condition[n, k].expand(space))
    assert with_planes(images, None) is images


@pytest.mark.parametrize("kind", MAKERS)
def test_the_condition_changes_output_and_gradient(kind: str) -> None:
    """Away from the borders, too, where padding would let even a cancelled condition through."""
    make, space = MAKERS[kind]
    torch.manual_seed(1)
    network = make()
    with torch.no_grad():
        for last in (x for x in network.modules() if getattr(x, "out_channels", 0) == 1):
            last.weight.mul_(30)  # as if trained: the last conv starts close to the identity
    x = torch.rand(1, 1, *space)
    first, second = (network(x, torch.eye(3)[[k]]) for k in (0, 1))
    core = (..., *(slice(n // 4, -n // 4) for n in space))
    assert float((first - second).detach()[core].abs().mean()) > 1e-3
    first[core].sum().backward()
    stem = next(p for p in network.parameters() if p.shape[1:2] == (4,))
    by_site = stem.grad.abs().flatten(2).sum((0, 2))[1:]
    assert float(by_site[0]) > 0
    assert by_site[1:].tolist() == [0, 0]  # nothing is learned of sites that were not asked for


def test_a_norm_behind_the_first_conv_would_take_it_out() -> None:
    """Why conditional generators have none there."""
    torch.manual_seed(0)
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(4, 8, 7), nn.InstanceNorm2d(8), nn.ReLU()]
    x = torch.rand(1, 1, 24, 24)
    with torch.no_grad():
        a, b = (nn.Sequential(*layers)(with_planes(x, torch.eye(3)[[k]])) for k in (0, 1))
        assert float((a - b).abs().max()) < 1e-4
        del layers[2]
        a, b = (nn.Sequential(*layers)(with_planes(x, torch.eye(3)[[k]])) for k in (0, 1))
        assert float((a - b).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", MAKERS)
def test_told_the_site_a_network_restores_it(kind: str) -> None:
    """Two sites whose contrasts bend opposite ways: without the condition, no answer fits both."""
    torch.manual_seed(2)
    network = SliceGenerator(8, 1, sites=2) if kind == "slices" else Generator(8, sites=2)
    space = MAKERS[kind][1]
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    exponents = torch.tensor([2.5, 0.4]).reshape(2, *(1 for _ in range(len(space) + 1)))

    def images() -> torch.Tensor:
        coarse = torch.rand(1, 1, *(4 for _ in space))
        return torch.nn.functional.interpolate(coarse, space).expand(2, *(-1 for _ in range(len(space) + 1)))

    for _ in range(60):
        image = images()
        loss = (network(image, torch.eye(2)) - image**exponents).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image = images()
    with torch.no_grad():
        own, other = (
            float((network.eval()(image, condition) - image**exponents).abs().mean())
            for condition in (torch.eye(2), torch.eye(2).flip(0))
        )
    assert own < other / 3
