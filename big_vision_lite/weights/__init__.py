"""Weights in and out: torchvision, timm, BiT and safetensors."""
