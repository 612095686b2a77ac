"""Writes networks of the right shapes with random weights, to measure with: `python make_networks.py networks`.

Needs torch, torchvision, transformers and safetensors as in ../../tests/fixtures/requirements.txt.
"""

import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

# The default configuration is ViT-B/32's.
CLIPModel(CLIPConfig()).save_pretrained(folder / "clip")

vgg16 = torchvision.models.vgg16(weights=None).state_dict()
features = {name: tensor.contiguous() for name, tensor in vgg16.items() if name.startswith("features.")}
save_file(features, folder / "vgg16.safetensors")

channels = [64, 128, 256, 512, 512]
linear = {f"lin{slice}.model.1.weight": torch.rand(1, width, 1, 1) for slice, width in enumerate(channels)}
save_file(linear, folder / "lpips-vgg16.safetensors")
