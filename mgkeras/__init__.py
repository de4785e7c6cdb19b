"""mgkeras: mask-guided 3D convolutional networks for breast DCE-MRI, after Liu et al. 2021."""

__version__ = "0.1.0"
