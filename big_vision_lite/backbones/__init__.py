"""Images to features at four strides."""
