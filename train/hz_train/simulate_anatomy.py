"""The anatomy of a simulated subject: a real head, deformed, aged and, for patients, changed by disease.

What decides a subject's anatomy is the subject alone: its random stream never sees a site, so that the same
brain appears at every site it is scanned at.

Effect sizes, and where they come from:

- Ventricles grow by 0.8 % a year up to 50 and by 3.3 % a year at 75, which for a ventricle of 35 cm3 is the
  1.2 cm3 a year that Resnick et al. 2003 (J Neurosci 23:3295, ages 59-85) measured in the very healthy.
  Between people of one age the log of the volume has a standard deviation of 0.30, besides what the heads
  themselves bring.
- Grey matter loses 4 % a decade, linearly from the youngest on (Ge et al. 2002, AJNR 23:1327, find it
  linear; Resnick et al. found 2.4 cm3 a year, 4 to 5 % of some 550 cm3 a decade). Between people of one age
  and head size the log has a standard deviation of 0.05. Sulci widen for it, a little more here than there.
- Disease widens ventricles by 22 % and thins the cortex of insula, superior temporal and medial frontal lobe,
  at a severity that varies by half of its mean. The pattern is that of schizophrenia, made larger
  (ventricles there: Hedges' g 0.31, Fusar-Poli et al. 2013, Neurosci Biobehav Rev 37:1680); `effect` scales
  it.
- Men's brains are a tenth larger in volume; size, pose and shape vary besides.

With these, volumes measured on the label maps of 400 subjects at 40 voxels a side (seed 0; the built-in head,
and 27 heads of OASIS) predict age in cross-validated ridge regression with r = .80 and .77 (.85 and .78 among
controls), and the diagnosis in logistic regression with an AUC of .67 and .65 from volumes of the whole
brain, of .90 and .85 with those of the regions. tests/train/test_simulate_effects.py holds them to bounds.

What this is not: a growth model. Lesions, white matter disease, dementia and regional aging are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.special import expit

from hz_runtime.model_space.recipe import Recipe
from hz_train.simulate_heads import EDGE_MM, F32, F64, SHIFTS, Grid, Head

ANATOMY = 1  # number of the random stream; simulate_site has 2

VENTRICLE_YEARLY = 0.008  # of the log of the volume
VENTRICLE_LATE = 0.001  # by how much that rises with every year beyond 50
VENTRICLE_SD = 0.30
GREY_YEARLY = -0.004
GREY_SD = 0.05
PATIENT_VENTRICLE = 0.20
PATIENT_CORTEX = 1.0  # logit of CSF at the centre of the regions below
PATIENT_SD = 0.5  # of the disease's severity, whose mean is 1
REGIONS = (  # centre, mm from the centre of the brain (x, y, z), and standard deviation, mm
    ((-45.0, 16.0, -10.0), 15.0),
    ((45.0, 16.0, -10.0), 15.0),
    ((0.0, 58.0, 8.0), 15.0),
)
THINNING_SD = 0.20  # of the logit of CSF from place to place
MALE_SIZE = 0.032  # log of a length: a tenth of the volume
SIZE_SD, AXIS_SD = 0.022, 0.012  # log of a length
TURN_SD, SHIFT_SD = 2.5, 1.5  # degrees, mm
BENDS = ((45.0, 2.2), (22.0, 1.0))  # spacing of the lattice and standard deviation of the shift, both mm
TEXTURE_SD = 0.02  # share of the signal, over some 12 mm
CONTRAST_SD = 0.015  # of a subject's own grey matter signal


@dataclass(frozen=True)
class Subject:
    """Who is scanned. Everything about the anatomy follows from these fields.

    home : name of the site that scans the subject.  age : years.  sex : "F" or "M".
    group : "control" or "patient".  head : index into the heads to simulate from.
    seed, index : choose the random streams.
    """

    index: int
    name: str
    home: str
    age: float
    sex: str
    group: str
    head: int
    seed: int

    def stream(self, *keys: int) -> np.random.Generator:
        """A random stream of this subject; other keys give an independent one."""
        return np.random.default_rng([self.seed, self.index, *keys])


@dataclass(frozen=True, eq=False)
class Tissues:
    """Noise-free anatomy, every field (D, H, W).

    csf, grey, white : float32 shares of each voxel, adding up to 1 in `brain` (bool) and 0 elsewhere.
    depth : as in `Head`.  texture : float32 relative signal of the tissue there, about 1.
    """

    grid: Grid
    brain: NDArray[np.bool_]
    csf: F32
    grey: F32
    white: F32
    depth: F32
    texture: F32

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """(D, H, W): 0 background, else what fills most of the voxel: 1 CSF, 2 grey, 3 white matter."""
        most = np.argmax(np.stack([self.csf, self.grey, self.white]), axis=0) + 1
        return np.where(self.brain, most, 0).astype(np.uint8)


def ventricle_growth(age: float) -> float:
    """Log of the ventricles' volume at `age` against that at 20 years."""
    return VENTRICLE_YEARLY * (age - 20) + VENTRICLE_LATE * max(age - 50, 0.0) ** 2 / 2


def tissues(subject: Subject, head: Head, effect: float = 1.0) -> Tissues:
    """The subject's anatomy, from its head. effect : size of the disease, of the one described above."""
    rng = subject.stream(ANATOMY)
    grid = head.grid
    to_head = _placement(subject, rng, grid)
    bend = np.sum([_lattice(rng, grid, spacing, sd, 3) for spacing, sd in BENDS], axis=0)
    thinning = _lattice(rng, grid, 40.0, THINNING_SD, 1)[0]
    texture = _lattice(rng, grid, 12.0, TEXTURE_SD, 1)[0]
    shades = rng.normal(0, CONTRAST_SD)
    normal = rng.standard_normal(3)
    severity = max(0.0, 1 + PATIENT_SD * normal[2]) * effect if subject.group == "patient" else 0.0

    where = np.argwhere(np.ones(grid.shape, bool)).T  # (3, n), in the memory order of the fields
    bent = where + bend.reshape(3, -1) / grid.spacing[:, None]
    coords = to_head[:3, :3] @ bent + to_head[:3, 3:]
    brain = _sampled(head.brain, coords).reshape(grid.shape) > 0.5
    inside = coords[:, brain.ravel()]
    csf, wall, grey, depth = (_sampled(field, inside) for field in head.fields)

    lost = thinning[brain] + severity * PATIENT_CORTEX * _regions(grid)[brain]
    csf = csf + _loss(subject, head, normal[0]) + lost
    wall = wall + _growth(subject, head, normal[1], severity)
    solid = (1 - expit(csf)) * (1 - expit(wall / EDGE_MM))
    values = {
        "csf": 1 - solid,
        "grey": solid * grey,
        "white": solid * (1 - grey),
        "depth": depth,
        "texture": 1 + texture[brain] + shades * grey * solid,
    }
    return Tissues(grid=grid, brain=brain, **{key: _filled(value, brain) for key, value in values.items()})


def _filled(values: NDArray[np.floating], brain: NDArray[np.bool_]) -> F32:
    out = np.zeros(brain.shape, np.float32)
    out[brain] = values
    return out


def _sampled(field: F32, coords: F64) -> F32:
    return np.asarray(map_coordinates(field, coords, np.float32, order=1, mode="nearest"))


def _growth(subject: Subject, head: Head, normal: float, severity: float) -> float:
    """mm by which the ventricles' wall moves outward."""
    change = ventricle_growth(subject.age) - ventricle_growth(head.age)
    change += VENTRICLE_SD * normal + PATIENT_VENTRICLE * severity
    own = float(np.interp(0, SHIFTS, head.ventricle_cm3))
    return float(np.interp(own * np.exp(change), head.ventricle_cm3, SHIFTS))


def _loss(subject: Subject, head: Head, normal: float) -> float:
    """What is added to the logit of CSF everywhere outside the ventricles."""
    change = GREY_YEARLY * (subject.age - head.age) + GREY_SD * normal
    own = float(np.interp(0, SHIFTS, head.grey_cm3))
    return float(np.interp(-own * np.exp(change), -head.grey_cm3, SHIFTS))


def _placement(subject: Subject, rng: np.random.Generator, grid: Grid) -> F64:
    """(4, 4) voxel of the subject's grid to voxel of the head's: size and pose around the brain's centre."""
    size = rng.normal(MALE_SIZE / 2 * (1 if subject.sex == "M" else -1), SIZE_SD)
    axes = np.exp(size + rng.normal(0, AXIS_SD, 3))
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.normal(0, TURN_SD, 3))):
        step = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    centre = np.asarray(Recipe().centre_mm)
    world = np.eye(4)
    world[:3, :3] = np.diag(1 / axes) @ turn
    world[:3, 3] = centre - world[:3, :3] @ (centre + rng.normal(0, SHIFT_SD, 3))
    return np.asarray(np.linalg.inv(grid.affine) @ world @ grid.affine)


def _lattice(rng: np.random.Generator, grid: Grid, spacing: float, sd: float, channels: int) -> F64:
    """Smooth random fields (channels, D, H, W): cubic B-splines over a lattice of `spacing` mm.

    sd : standard deviation of the field.
    """
    bases = [_basis(n, float(step), spacing) for n, step in zip(grid.shape, grid.spacing, strict=True)]
    knots = rng.standard_normal((channels, *(len(b.T) for b in bases)))
    field = np.einsum("cxyz,ix->ciyz", knots, bases[0], optimize=True)
    field = np.einsum("ciyz,jy->cijz", field, bases[1], optimize=True)
    smooth: F64 = np.einsum("cijz,kz->cijk", field, bases[2], optimize=True)
    return sd * smooth


@lru_cache(maxsize=64)
def _basis(n: int, step: float, spacing: float) -> F64:
    """(n, knots) uniform cubic B-spline weights, each row scaled to unit sum of squares: unit variance."""
    knots = int(np.ceil(n * step / spacing)) + 3
    at = (np.arange(n) + 0.5) * step / spacing + 1
    t = np.abs(at[:, None] - np.arange(knots))
    weights = np.where(t < 1, (4 - 6 * t**2 + 3 * t**3) / 6, np.clip(2 - t, 0, None) ** 3 / 6)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True))


@lru_cache(maxsize=4)
def _region_map(grid_key: tuple[tuple[int, int, int], bytes]) -> F32:
    shape, affine = grid_key[0], np.frombuffer(grid_key[1]).reshape(4, 4)
    axes = [affine[k, k] * np.arange(n) + affine[k, 3] for k, n in enumerate(shape)]
    total = np.zeros(shape)
    for centre, sd in REGIONS:
        near = [
            np.exp(-(((axis - middle - offset) / sd) ** 2) / 2)
            for axis, middle, offset in zip(axes, Recipe().centre_mm, centre, strict=True)
        ]
        total = np.maximum(total, np.einsum("i,j,k->ijk", *near))
    return total.astype(np.float32)


def _regions(grid: Grid) -> F32:
    """(D, H, W) in [0, 1]: where disease acts. The same place in every subject, give or take its shape."""
    return _region_map((grid.shape, np.ascontiguousarray(grid.affine, np.float64).tobytes()))
