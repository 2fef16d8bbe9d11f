"""The U-Net of the DDPM paper.

network.py     the network
blocks.py      its parts
variant.py     settings in which diffusers' networks may differ from it
"""

from tinydiff.unet.blocks import Downsample, ResBlock, Upsample, time_embedding
from tinydiff.unet.network import UNet

__all__ = ["Downsample", "ResBlock", "UNet", "Upsample", "time_embedding"]
