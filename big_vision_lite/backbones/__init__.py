"""From images to features at four strides."""
