"""N4 and registration by SimpleITK, to hold niimath's results against.

It is the implementation that N4 was published with (Tustison 2010), and a registration with another metric,
another optimiser and another start.

ITK's world is LPS, everything else here RAS; both in mm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hz_runtime.preparation.n4 import COARSEST_MM, CONVERGENCE, ITERATIONS
from hz_runtime.preparation.template import Template

sitk: Any = pytest.importorskip("SimpleITK")  # ships no types
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

BINS = 32  # of the mutual information
LEVELS = ((4, 4.0), (2, 2.0), (1, 0.0))  # shrink factor and smoothing in mm, coarse to fine
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def field(data: F32, affine: F64, mask: Mask) -> F32:
    """N4's smooth multiplicative field of a scan, (I, J, K) float32, geometric mean 1 in the mask.

    data : (I, J, K) float32, any unit, with `affine` (4, 4), voxel to world mm.  mask : (I, J, K) bool, where
    the field is estimated.  Voxels, iterations and convergence are those of `n4.corrected`.
    """
    spacing = float(np.linalg.norm(affine[:3, :3], axis=0).mean())
    shrink = [max(1, round(COARSEST_MM / spacing))] * 3
    scan, inside = _image(data, affine), _image(mask.astype(np.uint8), affine)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(n) for n in ITERATIONS.split("x")])
    n4.SetConvergenceThreshold(CONVERGENCE)
    n4.Execute(sitk.Shrink(scan, shrink), sitk.Shrink(inside, shrink))
    log = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(scan)).T
    return np.asarray(np.exp(log - log[mask].mean()), np.float32)


def affine_pose(data: F32, affine: F64, template: Template, threads: int = 1) -> F64:
    """The affine map from a brain's world to the template's, (4, 4) float64 mm, 12 degrees of freedom.

    Mattes mutual information, by gradient descent from the centres of mass: rigid first, then affine.

    data : (I, J, K) float32, zero outside the brain, with `affine` (4, 4), voxel to world mm.
    Raises RuntimeError where SimpleITK finds no map.
    """
    fixed, moving = _image(template.data, template.affine), _image(data, affine)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(threads)  # its sums depend on it
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([factor for factor, _ in LEVELS])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in LEVELS])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    full = sitk.AffineTransform(3)
    full.SetMatrix(start.GetMatrix())
    full.SetTranslation(start.GetTranslation())
    full.SetCenter(start.GetCenter())
    method.SetInitialTransform(full, inPlace=True)
    method.Execute(fixed, moving)
    # ITK maps the template's points to the scan's.
    return np.asarray(np.linalg.inv(_LPS @ _matrix(full) @ _LPS), np.float64)


def _matrix(transform: Any) -> F64:
    """(4, 4) of an affine transform about a centre."""
    linear = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.asarray(transform.GetCenter())
    whole = np.eye(4)
    whole[:3, :3] = linear
    whole[:3, 3] = centre + np.asarray(transform.GetTranslation()) - linear @ centre
    return whole


def _image(data: NDArray[Any], affine: F64) -> Any:
    """An ITK image of an (I, J, K) array; its grid must not be sheared."""
    lps = _LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image
