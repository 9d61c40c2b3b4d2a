"""Detection: Faster R-CNN on any backbone."""
