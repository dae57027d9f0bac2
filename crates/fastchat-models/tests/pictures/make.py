"""Writes the pictures beside it with Pillow, and what Pillow reads in them. Run by hand when a case is added."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
ramp = np.zeros((6, 8, 3), np.uint8)
ramp[..., 0] = np.arange(8) * 36
ramp[..., 1] = (np.arange(6) * 50)[:, None]
ramp[..., 2] = 255 - ramp[..., 0] // 2
picture = Image.fromarray(ramp)
big = picture.resize((32, 24), Image.Resampling.BICUBIC)

picture.save(HERE / "rgb.png")
picture.convert("L").save(HERE / "grey.png")
picture.quantize(16).save(HERE / "palette.png", transparency=0)
rgba = picture.convert("RGBA")
rgba.putalpha(Image.fromarray((np.arange(48).reshape(6, 8) * 5).astype(np.uint8)))
rgba.save(HERE / "rgba.png")
Image.fromarray((np.arange(48).reshape(6, 8) * 1300).astype(np.uint16)).save(HERE / "grey16.png")
big.save(HERE / "rgb.jpg", quality=95, subsampling=0)
big.convert("CMYK").save(HERE / "cmyk.jpg", quality=95)
exif = Image.Exif()
exif[0x0112] = 6
big.save(HERE / "turned.jpg", quality=95, subsampling=0, exif=exif)
picture.save(HERE / "rgb.webp", lossless=True)
frames = [picture, ImageOps.invert(picture)]
frames[0].save(HERE / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
frames[0].save(HERE / "moving.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
frames[0].save(HERE / "moving.png", save_all=True, append_images=frames[1:], duration=50)
Image.fromarray(np.full((1, 1, 3), 77, np.uint8)).save(HERE / "dot.png")

expected = {}
for path in sorted(HERE.iterdir()):
    if path.suffix in (".png", ".jpg", ".gif", ".webp"):
        read = ImageOps.exif_transpose(Image.open(path))
        if path.stem == "grey16":
            # Pillow cuts what it should scale; the upper byte is the eight-bit value.
            read = Image.fromarray(((np.arange(48).reshape(6, 8) * 1300) / 257 + 0.5).astype(np.uint8))
        rgb = np.asarray(read.convert("RGB"))
        expected[path.name] = {"size": [rgb.shape[1], rgb.shape[0]], "rgb": rgb.ravel().tolist()}
(HERE / "expected.json").write_text(json.dumps(expected))
