"""A simulated site: how its scanner shows an anatomy.

A site is a per-tissue contrast curve, a transmit field that bends this curve from place to place, a receive
field, resolution, the vendor's filter, noise and gain. `scan` is a function of the anatomy, the site and a
random stream of its own; it never touches the anatomy's.

What this is not: a physical simulation. Distortion, motion, lesions of contrast and errors of skull stripping
are left out.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from hz_runtime.errors import UsageError
from hz_train.augment import bias_field, tone_curve
from hz_train.simulate_anatomy import Subject, Tissues
from hz_train.simulate_heads import F32, Grid

SITE = 2  # number of the random stream; simulate_anatomy has 1

# Signal at the reference site, as a share of its full range, in the order of a T1-weighted scan.
CSF, GREY, WHITE = 0.20, 0.56, 0.86
DEEP_GREY = 0.10  # by how much nuclei are brighter than cortex


@dataclass(frozen=True)
class Site:
    """One scanner and its protocol.

    gamma : exponent of the contrast curve; above 1 darkens CSF and grey matter, below 1 flattens contrast.
    bends : departures of the curve's inner knots from that power law (`augment.tone_curve`).
    transmit : share by which gamma departs from place to place, in a pattern that belongs to the site.
    field : largest |log| of the receive field that belongs to the site's coil.
    drift : largest |log| of the part of the field that is new for every scan.
    blur_mm : standard deviation of the point spread along x, y, z.
    sharpen : share of an unsharp mask, the vendor's filter; negative smooths.
    noise : standard deviation of both channels of Rician noise, as a share of the full range.
    gain : stored intensity of the full range.  gain_sd : of its log from scan to scan.
    """

    name: str
    gamma: float = 1.0
    bends: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    transmit: float = 0.0
    field: float = 0.04
    drift: float = 0.0
    blur_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sharpen: float = 0.0
    noise: float = 0.006
    gain: float = 1000.0
    gain_sd: float = 0.1

    def at(self, strength: float) -> Site:
        """The site's departure from the reference site times `strength`: 1 is this site, 0 the reference.

        But for the pattern of its receive field, which stays its own: at 0 as faint as the reference's.
        """
        if strength == 1.0:
            return self
        none = Site(self.name)

        def between(ours: float, reference: float, least: float = 0.0) -> float:
            return max(reference + strength * (ours - reference), least)

        a, b, c, d = self.bends
        x, y, z = self.blur_mm
        return replace(
            self,
            gamma=float(self.gamma**strength),
            bends=(strength * a, strength * b, strength * c, strength * d),
            transmit=between(self.transmit, none.transmit),
            field=between(self.field, none.field),
            drift=between(self.drift, none.drift),
            blur_mm=(strength * x, strength * y, strength * z),
            sharpen=between(self.sharpen, 0.0, -1.0),
            noise=between(self.noise, none.noise),
        )

    def stream(self, subject: Subject, session: int) -> np.random.Generator:
        """The random stream of one scan of a subject here."""
        return subject.stream(SITE, zlib.crc32(self.name.encode()), session)


REFERENCE = Site("reference")
SITES = (
    REFERENCE,
    # Little contrast: flat curve, broad coil, the vendor's smoothing.
    Site("flat", 0.55, (0.02, 0.0, -0.02, 0.0), 0.10, 0.15, 0.08, (0.6, 0.6, 0.6), -0.3, 0.008, 400.0),
    # Much contrast: dark grey matter, sharpened.
    Site("steep", 1.7, (0.0, -0.03, 0.0, 0.02), 0.10, 0.10, 0.08, (0.3, 0.3, 0.3), 0.5, 0.012, 3000.0),
    # Thick sagittal slices, an old magnet.
    Site("thick", 0.70, (0.03, 0.03, 0.0, 0.0), 0.05, 0.20, 0.10, (2.0, 0.6, 0.6), 0.0, 0.020, 250.0),
    # A surface coil at high field: strong fields, both ways.
    Site("coil", 1.3, (0.0, 0.03, 0.02, 0.0), 0.25, 0.40, 0.15, (0.4, 0.4, 0.4), 0.2, 0.010, 1500.0),
    # Bright grey matter: a curve that no power is.
    Site("bright", 0.8, (-0.04, 0.05, 0.08, 0.03), 0.08, 0.12, 0.08, (0.8, 0.8, 0.8), 0.0, 0.010, 800.0),
)


def named_site(name: str) -> Site:
    """One of SITES. Raises UsageError."""
    for site in SITES:
        if site.name == name:
            return site
    raise UsageError(
        f"there is no simulated site {name!r}.", f"Choose from {', '.join(s.name for s in SITES)}."
    )


def signal(tissues: Tissues) -> F32:
    """What the reference scanner would see without field, blur and noise: (D, H, W) float32 in [0, 1]."""
    grey = GREY + DEEP_GREY * tissues.depth
    ideal = CSF * tissues.csf + grey * tissues.grey + WHITE * tissues.white
    return np.asarray(np.clip(ideal * tissues.texture, 0, 1), np.float32)


def scan(tissues: Tissues, site: Site, rng: np.random.Generator) -> F32:
    """The scan of an anatomy at a site: (D, H, W) float32 in stored units, zero outside the brain.

    rng : of this scan; `Site.stream`.
    """
    brain, grid = tissues.brain, tissues.grid
    seen = _contrast(signal(tissues), site, grid)
    sigma = np.asarray(site.blur_mm) / grid.spacing
    if sigma.any():
        seen = gaussian_filter(seen, sigma)
    if site.sharpen:
        seen = seen + np.float32(site.sharpen) * (seen - gaussian_filter(seen, 2.0 / grid.spacing))
    seen = seen * _coil(site.name, site.field, grid.shape)
    if site.drift:
        seen = seen * bias_field(brain, site.drift, rng)
    noise = np.float32(site.noise) * rng.standard_normal((2, *grid.shape), dtype=np.float32)
    seen = np.hypot(np.maximum(seen, 0) + noise[0], noise[1])
    stored = site.gain * float(np.exp(rng.normal(0, site.gain_sd)))
    return np.where(brain, seen * np.float32(stored), np.float32(0)).astype(np.float32)


def _contrast(ideal: F32, site: Site, grid: Grid) -> F32:
    bends = np.asarray(site.bends, np.float64)
    if not site.transmit:
        return tone_curve(ideal, site.gamma, bends)
    ends = [tone_curve(ideal, site.gamma * (1 + side * site.transmit), bends) for side in (-1, 1)]
    share = (1 + np.log(_coil(f"{site.name} transmit", 1.0, grid.shape))) / 2
    return np.asarray(ends[0] + share * (ends[1] - ends[0]), np.float32)


@lru_cache(maxsize=64)
def _coil(name: str, amplitude: float, shape: tuple[int, int, int]) -> F32:
    """A site's own smooth field over the whole grid; exp of at most `amplitude` either way."""
    rng = np.random.default_rng([SITE, zlib.crc32(name.encode())])
    return bias_field(np.ones(shape, bool), amplitude, rng)
