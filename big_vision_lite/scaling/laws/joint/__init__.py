"""Joint laws: error as a function of images, images seen, network and noise at once."""
