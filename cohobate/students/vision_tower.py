"""Sizes of the vision tower of a student that sees."""

from pydantic import Field, model_validator

from cohobate.params import Section


class VisionTower(Section):
    """A vision transformer of SigLIP's form: patches of a square picture, and layers over them."""

    image_size: int = Field(64, ge=8)
    """Side of a picture in pixels; other sizes are resized to it."""
    patch_size: int = Field(16, ge=2)
    """Side of a patch in pixels; each patch takes the place of a token before the text."""
    layers: int = Field(4, ge=1)
    """Number of layers."""
    width: int = Field(192, ge=8)
    """Width of a patch's state."""
    heads: int = Field(3, ge=1)
    """Attention heads of a layer."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "VisionTower":
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch_size) ** 2
