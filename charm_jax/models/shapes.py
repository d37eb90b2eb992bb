"""Name the types and shapes that functions of the models share."""

from jaxtyping import Array, Float, Num

Maps = Float[Array, "batch height width channels"]
SameSizeMaps = Float[Array, "batch height width features"]  # with other channels
NewMaps = Float[Array, "batch new_height new_width features"]
Features = Float[Array, "batch height width dim"]  # the expansion block's: f and f̄
Vectors = Float[Array, "batch dim"]
Logits = Float[Array, "batch findings"]
Labels = Num[Array, "batch findings"]
Scalar = Float[Array, ""]
